"""The mutants, by what they would falsify."""

from __future__ import annotations

from tests.mutants.mutant import Mutant
from tests.mutants.planted.booking import BOOKING
from tests.mutants.planted.counting import COUNTING
from tests.mutants.planted.customers import CUSTOMERS
from tests.mutants.planted.planning import PLANNING
from tests.mutants.planted.reading import READING
from tests.mutants.planted.receiving import RECEIVING
from tests.mutants.planted.sending import SENDING

MUTANTS: tuple[Mutant, ...] = (
    *RECEIVING,
    *READING,
    *COUNTING,
    *BOOKING,
    *PLANNING,
    *SENDING,
    *CUSTOMERS,
)
