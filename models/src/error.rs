//! Everything that can go wrong between a model's files and its logits.

use std::{ops::Range, path::PathBuf};

use crate::{BuiltIn, PageId, TokenId};

/// An error of loading or running a model. Messages name the cause and, where something is not supported, what is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A segment without rows, or scored rows outside it.
    #[error("a segment of {rows} rows cannot score rows {scored:?}")]
    BadSegment {
        /// Rows in the segment.
        rows: usize,
        /// Rows whose logits were asked for.
        scored: Range<usize>,
    },
    /// A row past the model's context length.
    #[error("the batch reaches position {end}, the model's context is {context_len} tokens")]
    ContextExceeded {
        /// One past the last position used.
        end: usize,
        /// The model's limit.
        context_len: usize,
    },
    /// A segment whose pages do not cover its positions.
    #[error("the segment needs {needed} KV pages and has {got}")]
    MissingPages {
        /// Pages needed.
        needed: usize,
        /// Pages given.
        got: usize,
    },
    /// A page id outside the KV cache.
    #[error("page {page:?} is outside the KV cache of {num_pages} pages")]
    PageOutOfRange {
        /// The page.
        page: PageId,
        /// Pages in the cache.
        num_pages: usize,
    },
    /// A token id that the model has no embedding for.
    #[error("token {} is outside the vocabulary of {vocab_size}", token.0)]
    TokenOutOfRange {
        /// The token.
        token: TokenId,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A position that a row sees but no pass wrote; only scripted models notice.
    #[error("position {position} is visible but was never written")]
    UnwrittenPosition {
        /// The position.
        position: usize,
    },
    /// A buffer of logits that is not a whole number of rows.
    #[error("{len} logits are not a whole number of rows of {vocab_size}")]
    BadLogits {
        /// Values given.
        len: usize,
        /// Width of a row.
        vocab_size: usize,
    },
    /// A file that could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A model name that is neither a path nor a Hub id.
    #[error(
        "`{name}` is not a model: give a folder, a .gguf file, a Hub id such as `org/name` or `org/name@revision`, \
         or a built-in model: {}",
        BuiltIn::names()
    )]
    BadSource {
        /// What was given.
        name: String,
    },
    /// The word for all built-in models where one is wanted.
    #[error("`builtin` stands for all built-in models; name one of them: {}", BuiltIn::names())]
    NotOneModel,
    /// A path that does not exist.
    #[error("no such file or folder: {}", path.display())]
    NoSuchPath {
        /// The path.
        path: PathBuf,
    },
    /// A model folder or repository that lacks a file.
    #[error("{origin} has no {wanted}")]
    MissingFile {
        /// The folder or repository.
        origin: String,
        /// What was looked for.
        wanted: &'static str,
    },
    /// A family that is not implemented.
    #[error("{origin}: the architecture `{architecture}` is not supported; supported are {supported}")]
    UnsupportedArchitecture {
        /// The file that names it.
        origin: String,
        /// The architecture.
        architecture: String,
        /// What is supported.
        supported: &'static str,
    },
    /// A family that was published with full and with block-causal attention, and nothing says which this is.
    #[error(
        "{origin}: models of this family attend in full (mdlm) or by blocks (bd3lm); neither the config nor the name \
         `{id}` says which, so give --attention full or --attention block_causal"
    )]
    AttentionUnknown {
        /// The config.
        origin: String,
        /// What the source calls the model.
        id: String,
    },
    /// A diffusion model whose mask token nothing names.
    #[error(
        "{origin} names no mask token: there is no `mask_token_id` in the config, no `mask_token` in the tokenizer, and \
         the usual one of {family} models is not in the vocabulary; give --mask-id"
    )]
    NoMaskToken {
        /// The file or folder.
        origin: String,
        /// The family.
        family: &'static str,
    },
    /// A mask token that the model has no embedding for.
    #[error("the mask token {} ({place}) is outside the model's {vocab_size} embeddings", token.0)]
    MaskOutOfRange {
        /// The token.
        token: TokenId,
        /// What names it.
        place: &'static str,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A mask token that ordinary text is spelled with.
    #[error("the mask token {} is `{spelling}`, which ordinary text is spelled with", token.0)]
    MaskIsText {
        /// The token.
        token: TokenId,
        /// Its spelling in the vocabulary.
        spelling: String,
    },
    /// A known kind of model with a setting that is not implemented.
    #[error("{origin}: `{field}` is {value}, which is not supported; supported: {supported}")]
    Unsupported {
        /// The file or tensor with the setting.
        origin: String,
        /// The setting.
        field: String,
        /// Its value.
        value: String,
        /// What is supported.
        supported: String,
    },
    /// A setting that cannot be, whatever is supported.
    #[error("{origin}: {reason}")]
    BadConfig {
        /// The file with the setting.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A weight file that breaks its format: cut short, overwritten, or made to harm.
    #[error("{origin} is damaged or not a {format} file: {reason}")]
    Corrupt {
        /// The file.
        origin: String,
        /// The format it should have.
        format: &'static str,
        /// The first broken rule.
        reason: String,
    },
    /// A weight that the family needs and the files lack.
    #[error("{origin} has no tensor `{name}`")]
    MissingTensor {
        /// The file or folder.
        origin: String,
        /// The tensor, by its Hugging Face name.
        name: String,
    },
    /// A weight whose shape does not follow from the config.
    #[error("tensor `{name}` has shape {got:?}, the config asks for {expected:?}")]
    WrongShape {
        /// The tensor.
        name: String,
        /// The shape that follows from the config.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// Weights that no layer took: the files hold another model than the config says.
    #[error("{origin} holds {count} tensors that a {family} model does not use, among them {examples}")]
    UnusedTensors {
        /// The file or folder.
        origin: String,
        /// How many.
        count: usize,
        /// The family.
        family: &'static str,
        /// The first few names.
        examples: String,
    },
    /// Weights that do not fit.
    #[error("not enough memory: the weights need {needed_mib} MiB and {available_mib} MiB are available")]
    NotEnoughMemory {
        /// Needed, in MiB.
        needed_mib: u64,
        /// Available, in MiB.
        available_mib: u64,
    },
    /// A device that is not there.
    #[error("--device {target}: {source}")]
    NoDevice {
        /// The device asked for.
        target: String,
        /// Why there is none.
        source: Box<kernels::KernelError>,
    },
    /// What a device has no kernels for.
    #[error("{origin}: {what} cannot run on a GPU; use --device cpu")]
    NotOnDevice {
        /// The model.
        origin: String,
        /// What it has.
        what: String,
    },
    /// A KV cache that does not fit beside the weights.
    #[error(
        "not enough memory: the KV cache needs {needed_mib} MiB and {available_mib} MiB are available; \
         ask for fewer KV tokens"
    )]
    CacheMemory {
        /// Needed, in MiB.
        needed_mib: u64,
        /// Available, in MiB.
        available_mib: u64,
    },
    /// A device whose memory does not hold a model.
    #[error(
        "not enough memory on {device}: the weights need {weights_mib} MiB, the KV cache {cache_mib} MiB and the work \
         space of a pass {workspace_mib} MiB; {available_mib} MiB are there for them. Ask for fewer KV tokens, fewer rows \
         a pass, or weights of fewer bits"
    )]
    DeviceMemory {
        /// Name of the device.
        device: String,
        /// Weights, in MiB.
        weights_mib: u64,
        /// KV cache, in MiB; 0 if the weights alone do not fit.
        cache_mib: u64,
        /// Work space, in MiB; 0 if the weights alone do not fit.
        workspace_mib: u64,
        /// There for all three, in MiB.
        available_mib: u64,
    },
    /// A pass with more rows, page tables or pages than there is room for.
    #[error("a pass with {got} {what}; there is room for {room}")]
    BeyondCapacity {
        /// What there are too many of.
        what: &'static str,
        /// How many.
        got: usize,
        /// How many fit.
        room: usize,
    },
    /// Queries that do not belong to the scored rows of a pass.
    #[error("{got} queries for {expected} scored rows")]
    QueryCount {
        /// Scored rows.
        expected: usize,
        /// Queries.
        got: usize,
    },
    /// A KV cache of another kind of model.
    #[error("the KV cache lies {got}, the model runs {expected}")]
    ForeignCache {
        /// Where the model runs.
        expected: &'static str,
        /// Where the cache lies.
        got: &'static str,
    },
    /// A tokenizer that cannot be read or does not fit.
    #[error("{origin}: {reason}")]
    BadTokenizer {
        /// The file.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tokenizer with more tokens than the model has embeddings.
    #[error("the tokenizer has token id {max_id}, the model embeds {vocab_size} tokens; they belong to other models")]
    TokenizerTooLarge {
        /// Highest id of the tokenizer.
        max_id: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// Nothing says which token ends a text.
    #[error("{origin} names no end-of-text token: `eos_token_id` is missing or outside the vocabulary")]
    NoEndToken {
        /// The file or folder.
        origin: String,
    },
    /// Text that could not be tokenised.
    #[error("cannot tokenize the text: {reason}")]
    Tokenize {
        /// The tokenizer's reason.
        reason: String,
    },
    /// A chat template that is not valid.
    #[error("the chat template is not valid: {reason}")]
    BadTemplate {
        /// The cause.
        reason: String,
    },
    /// The chat template refused the messages; the message is the template's own.
    #[error("{message}")]
    TemplateRefused {
        /// What the template said.
        message: String,
    },
    /// The chat template failed on the messages.
    #[error("the chat template failed: {reason}")]
    TemplateFailed {
        /// The cause.
        reason: String,
    },
    /// The Hub refused, or could not be reached.
    #[error("cannot get {repo} from the Hugging Face Hub: {reason}")]
    Hub {
        /// The repository.
        repo: String,
        /// The cause.
        reason: String,
    },
    /// A kernel refused its input.
    #[error(transparent)]
    Kernel(#[from] kernels::KernelError),
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
