//! Text to tokens and back, and messages to text.

mod json;
mod mask;
mod strftime;
mod template;
mod tokenizer;

pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
