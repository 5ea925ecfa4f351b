"""From prompts to token ids, with the model's own tokenizer and chat template."""

from __future__ import annotations

from typing import Any

from replicas.embedded_model import resolve_model

Message = dict[str, Any]
"""One chat message: `role` and `content`."""


class PromptEncoder:
    """Encodes prompts for one model as vLLM does: `LLM.chat` for messages, `LLM.generate` for text.

    Args:
        model: Model folder, hub name or the embedded model.

    Raises:
        ModelNotFoundError: No such folder.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoTokenizer

        self.model = model
        self._tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model(model))

    @property
    def has_chat_template(self) -> bool:
        """Whether the model says how chat messages are written."""
        return self._tokenizer.chat_template is not None

    def encode(self, prompt: str | list[Message], *, chat_template: bool = True) -> list[int]:
        """Token ids of a prompt.

        Args:
            prompt: A text or chat messages.
            chat_template: Whether a text is wrapped as a user's message.

        Raises:
            ValueError: Messages for a model without a chat template, or ones it refuses.
        """
        if isinstance(prompt, str) and not chat_template:
            ids: list[int] = self._tokenizer.encode(prompt)
            return ids
        if not self.has_chat_template:
            raise ValueError(
                f"model {self.model!r} has no chat template: give plain prompts and turn the chat "
                "template off"
            )
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        try:
            encoded = self._tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=True
            )
        except Exception as error:  # templates are programs: they raise what they like
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        return list(encoded["input_ids"])
