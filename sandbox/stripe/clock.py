"""Virtual time: real time plus an offset, or a frozen instant.

Owns: what "now" is for everything the stand-in does. Refuses to know: what happens as time passes.
"""

from sandbox.stripe.errors import JsonObject, invalid
from sandbox.stripe.state import State
from tollgate.runtime.clock import Clock

_SETTING = "clock"


class VirtualClock:
    """The stand-in's clock. Kept in the state file, so that a restart does not turn time back."""

    def __init__(self, real: Clock, state: State) -> None:
        self._real = real
        self._state = state
        kept = state.setting(_SETTING) or {}
        self._offset_ms: int = kept.get("offset_ms", 0)
        self._frozen_ms: int | None = kept.get("frozen_ms")

    def now_ms(self) -> int:
        """Virtual epoch milliseconds."""
        return self._frozen_ms if self._frozen_ms is not None else self._real.now_ms() + self._offset_ms

    def now_seconds(self) -> int:
        """Virtual epoch seconds, the unit Stripe's objects use."""
        return self.now_ms() // 1000

    def real_seconds(self) -> int:
        """Real epoch seconds: webhook signatures carry these, since receivers check them by their own clock."""
        return self._real.now_ms() // 1000

    def move(
        self, *, now_seconds: int | None, advance_seconds: int | None, real: bool, frozen: bool | None
    ) -> None:
        """Set, advance, freeze or release virtual time.

        Time moves forward only, once anything has been created; ``real`` alone may go back, to real time. Raises
        ``Refusal`` (400) otherwise.
        """
        if real:
            self._offset_ms, self._frozen_ms = 0, None
        # Read once: between two looks a flowing clock moves on, and standing still would look like going back.
        now_ms = target_ms = self.now_ms()
        if now_seconds is not None:
            target_ms = now_seconds * 1000
        if advance_seconds is not None:
            target_ms += advance_seconds * 1000
        if target_ms < now_ms and not self._state.is_empty():
            raise invalid("Virtual time moves forward only; use real=true to return to real time.", "now")
        keep_frozen = frozen if frozen is not None else self._frozen_ms is not None
        self._offset_ms = target_ms - self._real.now_ms()
        self._frozen_ms = target_ms if keep_frozen else None
        if real and now_seconds is None and advance_seconds is None:
            self._offset_ms = 0
        self._state.set_setting(_SETTING, {"offset_ms": self._offset_ms, "frozen_ms": self._frozen_ms})

    def describe(self) -> JsonObject:
        """What ``GET /_clock`` answers."""
        return {
            "now": self.now_seconds(),
            "now_ms": self.now_ms(),
            "offset_ms": self._offset_ms,
            "frozen": self._frozen_ms is not None,
        }
