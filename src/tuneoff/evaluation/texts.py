"""Texts in the making, and what is left of them."""

from dataclasses import dataclass, field

from tuneoff.evaluation.decoding import Row


@dataclass(frozen=True)
class Continuation:
    """What was written after a prompt.

    Attributes:
        ids: new tokens, without the end-of-sequence token.
        ended: whether that token came; otherwise the text was cut at the limit of new tokens.
        num_near_ties: choices in it between scores within 1e-4 of each other; of beams they are not counted.
    """

    ids: tuple[int, ...]
    ended: bool
    num_near_ties: int = 0


@dataclass
class Text:
    """A text in the making: which of the strategies writes it, and where it belongs."""

    strategy: int
    row: Row
    ids: list[int] = field(default_factory=list)
    ended: bool = False
    num_near_ties: int = 0

    def take(self, token: int, is_near: bool, eos_id: int | None, max_new_tokens: int) -> bool:
        """Add a token; return whether the text goes on after it."""
        self.num_near_ties += is_near
        if token == eos_id:
            self.ended = True
            return False
        self.ids.append(token)
        return len(self.ids) < max_new_tokens

    def continuation(self) -> Continuation:
        """Return the text as it stands."""
        return Continuation(tuple(self.ids), self.ended, self.num_near_ties)
