"""Token ids of SmolLM2 for `tests/tokenizers.rs`, by the `tokenizers` library with the pre-tokenizer that the model was
published with.

    pip install tokenizers==0.22.2 gguf==0.19.0
    python smollm2_tokens.py SmolLM2-135M-Instruct.Q4_1.gguf > smollm2_tokens.json
"""

import json
import sys

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces,\ttabs\n\nand 12345 digits, isn't it?",
    "naïve café – “quotes” … 漢字かな 한국어 עברית",
    "emoji 👩‍👩‍👧 and 🦀, control \u0001",
    "fn main() { println!(\"{}\", 1 << 3); }\n",
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n",
    "DON'T  shout;   100,000.5e-7 \r\n\r\n end ",
    "",
]

fields = GGUFReader(sys.argv[1]).fields
tokens = fields["tokenizer.ggml.tokens"].contents()
merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
types = fields["tokenizer.ggml.token_type"].contents()

tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
tokenizer.add_special_tokens([AddedToken(token, special=True) for token, kind in zip(tokens, types) if kind == 3])
print(json.dumps([[text, tokenizer.encode(text).ids] for text in TEXTS], ensure_ascii=False))
