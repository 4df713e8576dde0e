//! Text to tokens: the tokenizer of the zoo, trained on its tasks, and the chat format.

use std::{fs, path::Path};

use serde_json::json;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
    TokenizerImpl,
    models::bpe::{BPE, BpeTrainer},
    pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence},
};

use crate::{
    ZooError,
    tasks::{Problem, Role, Split, Task},
};

/// The special tokens, in the order of their ids from 0.
pub const SPECIAL_TOKENS: [&str; 7] =
    ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|mask|>"];

/// Ids of the special tokens.
#[derive(Debug, Clone, Copy)]
pub struct Specials;

impl Specials {
    /// Fills up.
    pub const PAD: u32 = 0;
    /// Begins a dialogue.
    pub const BOS: u32 = 1;
    /// Ends a turn.
    pub const END: u32 = 2;
    /// Begins the system's turn.
    pub const SYSTEM: u32 = 3;
    /// Begins the user's turn.
    pub const USER: u32 = 4;
    /// Begins the assistant's turn.
    pub const ASSISTANT: u32 = 5;
    /// An undecided slot.
    pub const MASK: u32 = 6;
}

/// The chat format as a template; [`Text::prompt`] writes the same tokens.
const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
{% if message['role'] not in ['system', 'user', 'assistant'] %}\
{{ raise_exception('this model knows the roles system, user and assistant only') }}{% endif %}\
{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// A problem as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The dialogue up to the answer.
    pub prompt: Vec<u32>,
    /// The answer and `<|end|>`.
    pub answer: Vec<u32>,
}

/// The tokenizer and the chat format.
#[derive(Debug, Clone)]
pub struct Text {
    tokenizer: Tokenizer,
}

impl Text {
    /// Trains a byte-level BPE of `vocab` entries on `problems` problems of each task. Digits stay single.
    pub fn train(vocab: usize, problems: u64, seed: u64) -> Result<Self, ZooError> {
        let mut lines = Vec::new();
        for task in Task::ALL {
            for index in 0..problems {
                let problem = task.problem(Split::Train, seed, index);
                lines.extend(problem.messages.into_iter().map(|message| message.content));
                lines.push(problem.answer);
            }
        }
        let bytes = ByteLevel::new(false, true, true);
        let mut tokenizer: TokenizerImpl<
            BPE,
            NormalizerWrapper,
            PreTokenizerWrapper,
            PostProcessorWrapper,
            DecoderWrapper,
        > = TokenizerImpl::new(BPE::default());
        tokenizer
            .with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![
                PreTokenizerWrapper::Digits(Digits::new(true)),
                PreTokenizerWrapper::ByteLevel(bytes),
            ]))))
            .with_decoder(Some(DecoderWrapper::ByteLevel(bytes)));
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(SPECIAL_TOKENS.iter().map(|text| AddedToken::from(*text, true)).collect())
            .build();
        tokenizer.train(&mut trainer, lines.iter().map(String::as_str))?;
        let mut finished = Tokenizer::new(ModelWrapper::BPE(tokenizer.get_model().clone()));
        finished
            .with_pre_tokenizer(tokenizer.get_pre_tokenizer().cloned())
            .with_decoder(tokenizer.get_decoder().cloned());
        finished.add_special_tokens(SPECIAL_TOKENS.iter().map(|text| AddedToken::from(*text, true)))?;
        Ok(Self { tokenizer: finished })
    }

    /// Reads `tokenizer.json` of a folder.
    pub fn load(folder: &Path) -> Result<Self, ZooError> {
        Ok(Self { tokenizer: Tokenizer::from_file(folder.join("tokenizer.json"))? })
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`; `context` is the longest text in tokens.
    pub fn save(&self, folder: &Path, context: usize) -> Result<(), ZooError> {
        self.tokenizer.save(folder.join("tokenizer.json"), false)?;
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "clean_up_tokenization_spaces": false,
            "bos_token": SPECIAL_TOKENS[Specials::BOS as usize],
            "eos_token": SPECIAL_TOKENS[Specials::END as usize],
            "pad_token": SPECIAL_TOKENS[Specials::PAD as usize],
            "mask_token": SPECIAL_TOKENS[Specials::MASK as usize],
            "chat_template": CHAT_TEMPLATE,
        });
        let path = folder.join("tokenizer_config.json");
        fs::write(&path, format!("{config:#}\n")).map_err(|source| ZooError::Io { path, source })
    }

    /// Entries of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Tokens of plain text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ZooError> {
        Ok(self.tokenizer.encode_fast(text, false)?.get_ids().to_vec())
    }

    /// Text of tokens without the special ones.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, ZooError> {
        Ok(self.tokenizer.decode(tokens, true)?)
    }

    /// A problem as the models read it.
    pub fn problem(&self, problem: &Problem) -> Result<Encoded, ZooError> {
        let mut prompt = vec![Specials::BOS];
        for message in &problem.messages {
            prompt.push(match message.role {
                Role::System => Specials::SYSTEM,
                Role::User => Specials::USER,
                Role::Assistant => Specials::ASSISTANT,
            });
            prompt.extend(self.encode(message.content.trim())?);
            prompt.push(Specials::END);
        }
        prompt.push(Specials::ASSISTANT);
        let mut answer = self.encode(&problem.answer)?;
        answer.push(Specials::END);
        Ok(Encoded { prompt, answer })
    }
}
