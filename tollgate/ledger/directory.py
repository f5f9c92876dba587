"""The directory: which customer pays for an account, and for which event times.

Owns the mapping rules, the history in `mappings` and the version that tells others to look again. It refuses to know
where a customer's data come from and what an account has used. An interval `[from_ms, to_ms)` is in event time.

How a mapping lives:
- the first mapping an account ever has holds from 0, so that usage which was waiting for it is released;
- a later one holds from the moment it became known: what happened in between was nobody's;
- a mapping that is no longer true ends, it is never deleted; usage before its end stays where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, Engine, and_, func, insert, or_, select, update

from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.tables import customers, directory_state, mappings, subscriptions


class MappingRule(StrEnum):
    """How the name a gateway logs is found among Stripe's. The left side is the account's kind."""

    USER_IS_CUSTOMER_ID = "user=customer.id"
    """What Kong's custom_id carries."""
    USER_IS_CUSTOMER_EMAIL = "user=customer.email"
    COMPANY_IS_CUSTOMER_ID = "company=customer.id"
    COMPANY_IS_SUBSCRIPTION_ID = "company=subscription.id"


DEFAULT_RULES: tuple[MappingRule, ...] = (MappingRule.USER_IS_CUSTOMER_ID, MappingRule.COMPANY_IS_CUSTOMER_ID)
"""Rules no two customers can collide on: Stripe's ids are unique, e-mail addresses are not."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """`account` is paid for by `customer_id` for event times in `[from_ms, to_ms)`; no end when `to_ms` is None."""

    account: str
    customer_id: str
    from_ms: int
    to_ms: int | None
    rule: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class CustomerEntry:
    """A customer with the subscriptions that have not ended and the accounts it pays for now."""

    customer_id: str
    email: str | None
    name: str | None
    deleted: bool
    subscription_ids: tuple[str, ...]
    accounts: tuple[str, ...]
    updated_ms: int


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A mapping that ought to hold, up to `to_ms` where its end is known."""

    rule: str
    to_ms: int | None


# ------------------------------------------------------------------------------------------------ reading


def resolve(engine: Engine, account: str, at_ms: int) -> tuple[Mapping, ...]:
    """The mappings of `account` valid at event time `at_ms`: none, one, or several (ambiguous: bill nobody)."""
    with read_snapshot(engine) as connection:
        rows = connection.execute(
            select(mappings)
            .where(
                mappings.c.account == account,
                mappings.c.from_ms <= at_ms,
                or_(mappings.c.to_ms.is_(None), mappings.c.to_ms > at_ms),
            )
            .order_by(mappings.c.customer_id, mappings.c.from_ms)
        )
        return tuple(Mapping(**row) for row in rows.mappings())


def list_mappings(
    engine: Engine, *, account: str | None = None, customer_id: str | None = None
) -> tuple[Mapping, ...]:
    """The whole history, ended mappings included, by account and time; of one account or customer when given."""
    query = select(mappings).order_by(mappings.c.account, mappings.c.from_ms, mappings.c.customer_id)
    if account is not None:
        query = query.where(mappings.c.account == account)
    if customer_id is not None:
        query = query.where(mappings.c.customer_id == customer_id)
    with read_snapshot(engine) as connection:
        return tuple(Mapping(**row) for row in connection.execute(query).mappings())


def list_customers(engine: Engine) -> tuple[CustomerEntry, ...]:
    """Every customer known, deleted ones included, by id."""
    with read_snapshot(engine) as connection:
        known = connection.execute(select(customers).order_by(customers.c.customer_id)).mappings().all()
        living = connection.execute(
            select(subscriptions.c.customer_id, subscriptions.c.subscription_id)
            .where(subscriptions.c.ended_ms.is_(None))
            .order_by(subscriptions.c.subscription_id)
        ).all()
        paying = connection.execute(
            select(mappings.c.customer_id, mappings.c.account)
            .where(mappings.c.to_ms.is_(None))
            .order_by(mappings.c.account)
        ).all()
    subscription_ids = _grouped([(row.customer_id, row.subscription_id) for row in living])
    accounts = _grouped([(row.customer_id, row.account) for row in paying])
    return tuple(
        CustomerEntry(
            customer_id=row["customer_id"],
            email=row["email"],
            name=row["name"],
            deleted=row["deleted"],
            subscription_ids=subscription_ids.get(row["customer_id"], ()),
            accounts=accounts.get(row["customer_id"], ()),
            updated_ms=row["updated_ms"],
        )
        for row in known
    )


def directory_version(engine: Engine) -> int:
    """The number that has changed if any mapping or item period has; 0 before the first."""
    with read_snapshot(engine) as connection:
        return connection.scalar(select(directory_state.c.version).where(directory_state.c.id == 1)) or 0


def _grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    grouped: dict[str, list[str]] = {}
    for key, value in pairs:
        grouped.setdefault(key, []).append(value)
    return {key: tuple(values) for key, values in grouped.items()}


# ------------------------------------------------------------------------------------------------ writing


def lock_directory(connection: Connection) -> None:
    """Make this transaction the only one writing customers, periods or mappings until it ends.

    One lock, taken first, in every such transaction: they can neither deadlock nor both be an account's first.
    """
    held = connection.execute(
        update(directory_state).where(directory_state.c.id == 1).values(version=directory_state.c.version)
    )
    if held.rowcount == 0:
        connection.execute(insert(directory_state).values(id=1, version=0))


def raise_directory_version(connection: Connection) -> None:
    """Say that mappings or item periods have changed, in the transaction that changed them."""
    connection.execute(
        update(directory_state).where(directory_state.c.id == 1).values(version=directory_state.c.version + 1)
    )


def sync_mappings(
    connection: Connection,
    customer_id: str,
    rules: Sequence[MappingRule],
    now_ms: int,
    deleted_ms: int | None = None,
) -> bool:
    """Make one customer's mappings what its rows and `rules` say; True if anything changed.

    Call it holding `lock_directory`, after the customer's or a subscription's row was written. `deleted_ms` is when
    the customer was deleted, where that is known: its mappings end then, not when we heard of it. Mappings made by
    a rule this module does not know (made by hand, or by a sign-up) are left alone.
    """
    wanted = _wanted_mappings(connection, customer_id, rules, now_ms)
    existing = connection.execute(
        select(mappings)
        .where(
            mappings.c.customer_id == customer_id,
            mappings.c.rule.in_([rule.value for rule in MappingRule]),
        )
        .order_by(mappings.c.from_ms)
    ).mappings()
    changed = False
    satisfied: set[str] = set()
    for row in existing:
        account, to_ms = row["account"], row["to_ms"]
        target = to_ms
        if account in wanted:
            if to_ms is None:
                satisfied.add(account)
                target = wanted[account].to_ms
            elif wanted[account].to_ms is not None:
                satisfied.add(account)
        elif to_ms is None:
            target = now_ms
        if deleted_ms is not None and (target is None or target > deleted_ms):
            target = deleted_ms
        if target is not None:
            target = max(target, row["from_ms"])
        if target != to_ms:
            _set_end(connection, account, customer_id, row["from_ms"], target)
            changed = True
    for account, want in wanted.items():
        if account not in satisfied:
            changed = _open_mapping(connection, account, customer_id, want, now_ms) or changed
    return changed


def _wanted_mappings(
    connection: Connection, customer_id: str, rules: Sequence[MappingRule], now_ms: int
) -> dict[str, _Wanted]:
    """By account, the mappings the customer's rows call for; the first rule that names an account makes it."""
    customer = connection.execute(select(customers).where(customers.c.customer_id == customer_id)).first()
    wanted: dict[str, _Wanted] = {}
    for rule in rules:
        if rule is MappingRule.COMPANY_IS_SUBSCRIPTION_ID:
            rows = connection.execute(
                select(subscriptions.c.subscription_id, subscriptions.c.ended_ms).where(
                    subscriptions.c.customer_id == customer_id
                )
            )
            for subscription_id, ended_ms in rows:
                gone = customer is not None and customer.deleted
                end_ms = now_ms if ended_ms is None and gone else ended_ms
                wanted.setdefault(f"company:{subscription_id}", _Wanted(rule, end_ms))
        elif customer is not None and not customer.deleted:
            kind, _, _ = rule.partition("=")
            name = customer.email if rule is MappingRule.USER_IS_CUSTOMER_EMAIL else customer.customer_id
            if name:
                wanted.setdefault(f"{kind}:{name}", _Wanted(rule, None))
    return wanted


def _open_mapping(connection: Connection, account: str, customer_id: str, want: _Wanted, now_ms: int) -> bool:
    """Begin a mapping: from 0 if it is the account's first, else from now. False if it would be empty."""
    known = connection.scalar(select(func.count()).select_from(mappings).where(mappings.c.account == account))
    from_ms = now_ms if known else 0
    if want.to_ms is not None and want.to_ms <= from_ms:
        return False
    reopened = connection.execute(
        update(mappings)
        .where(
            mappings.c.account == account,
            mappings.c.customer_id == customer_id,
            mappings.c.from_ms == from_ms,
        )
        .values(to_ms=want.to_ms, rule=want.rule)
    )
    if reopened.rowcount == 0:
        connection.execute(
            insert(mappings).values(
                account=account,
                customer_id=customer_id,
                from_ms=from_ms,
                to_ms=want.to_ms,
                rule=want.rule,
                created_ms=now_ms,
            )
        )
    return True


def _set_end(connection: Connection, account: str, customer_id: str, from_ms: int, to_ms: int | None) -> None:
    connection.execute(
        update(mappings)
        .where(
            and_(
                mappings.c.account == account,
                mappings.c.customer_id == customer_id,
                mappings.c.from_ms == from_ms,
            )
        )
        .values(to_ms=to_ms)
    )


def remap_customers(engine: Engine, rules: Sequence[MappingRule], now_ms: int) -> int:
    """Apply changed `rules` to every customer already known; how many had a mapping changed.

    One transaction a customer, so that it never holds the directory long. Safe to repeat.
    """
    with read_snapshot(engine) as connection:
        known = connection.scalars(select(customers.c.customer_id).order_by(customers.c.customer_id)).all()
    changed = 0
    for customer_id in known:
        with ledger_transaction(engine) as connection:
            lock_directory(connection)
            if sync_mappings(connection, customer_id, rules, now_ms):
                raise_directory_version(connection)
                changed += 1
    return changed
