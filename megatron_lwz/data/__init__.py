"""Prompts, templates, tokenizer, corpora, packing, and the text measures that rewards and guards share."""
