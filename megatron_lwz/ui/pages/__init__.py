"""The pages as HTML text. Every text of foreign origin passes through `report.text` on its way."""
