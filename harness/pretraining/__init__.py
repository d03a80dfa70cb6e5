"""The default study's tiny models: vision encoder, language model, SAM, and a start that joins them."""
