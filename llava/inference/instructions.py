"""Instructions that follow a question, as LLaVA's question files have them. Imports nothing heavy."""

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_CN = "\n请直接回答选项字母。"
