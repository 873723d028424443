"""The pages as HTML text. Every text of foreign origin passes through `ui.text` on its way."""
