"""The rows: what can go wrong, what follows, and which tests, storm faults and simulated situations show it.

Owns the matrix as data; `docs/fault-matrix.md` is made of it. It refuses to know results (`recorded.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.storm.schedule import Kind, Place

_COMMIT = "tests/contract/ledger/test_commit.py::"
_ENGINE = "tests/contract/ledger/test_engine.py::"
_FAUST = "tests/integration/test_meter_faust.py::"
_FOLD = "tests/unit/metering/test_fold.py::"
_GROUP = "tests/integration/test_meter_group.py::"
_HOSTILE = "tests/unit/ingest/test_hostile.py::"
_HTTP = "tests/unit/ingest/test_http.py::"
_LOG = "tests/integration/test_meter_log.py::"
_MODES = "tests/integration/test_posting_modes.py::"
_PIPELINE = "tests/unit/meter/test_pipeline.py::"
_SENDER = "tests/unit/stripe_sync/test_sender.py::"
_SIGNATURE = "tests/unit/webhooks/test_signature.py::"
_SYNC = "tests/integration/test_stripe_sync.py::"
_WEBHOOKS = "tests/integration/test_webhooks.py::"


@dataclass(frozen=True, slots=True)
class StormFault:
    """A kind of fault in one place of the storm."""

    place: Place
    kind: Kind

    def __str__(self) -> str:
        return f"{self.kind} ({self.place})"


@dataclass(frozen=True, slots=True)
class Row:
    """One fault."""

    number: int
    fault: str
    answer: str
    """What Tollgate does; nothing lost and nothing doubled goes without saying."""
    tests: tuple[str, ...] = ()
    """pytest node ids, without parameters."""
    storm: tuple[StormFault, ...] = ()
    situations: tuple[str, ...] = ()
    """Of the simulator, by name."""
    uncovered: str = ""
    """What of it nothing shows, plainly; empty when all of it is shown."""

    @property
    def is_covered(self) -> bool:
        """Whether anything shows it."""
        return bool(self.tests or self.storm or self.situations)


def _blown(place: Place, *kinds: Kind) -> tuple[StormFault, ...]:
    return tuple(StormFault(place, kind) for kind in kinds)


_KILLED_SERVICES = _blown(Place.SERVICES, Kind.KILL, Kind.TERMINATE, Kind.PAUSE, Kind.FLAP)

ROWS: tuple[Row, ...] = (
    Row(
        1,
        "A sender gets no answer and sends again",
        "the second copy ends as a duplicate",
        tests=(
            "tests/integration/test_ingest.py::test_no_success_without_an_acknowledgement",
            _PIPELINE + "test_duplicates_are_found_across_flushes",
        ),
        storm=_blown(Place.CLIENTS, Kind.LOSE_REPLIES),
    ),
    Row(
        2,
        "One id with two contents",
        "the first counts, the second is a duplicate and moves that counter",
        tests=("tests/unit/metering/test_same_id.py::test_of_one_id_with_two_contents_the_first_counts",),
        uncovered="a duplicate whose content differs is not told apart from one that is equal",
    ),
    Row(
        3,
        "An hour of the log, or of requests, comes again ten times",
        "counts stay as they are",
        tests=(
            _FAUST + "test_replays_are_dropped",
            "tests/unit/metering/test_same_id.py::test_an_hour_sent_ten_times_counts_once",
            "tests/property/test_totals.py::test_a_restart_changes_nothing",
        ),
        situations=(
            "records fetched again",
            "rolled back, then the same ids counted",
        ),
    ),
    Row(
        4,
        "Events out of order, or late within the accepted age",
        "each counts in the window of its own time",
        tests=(
            "tests/property/test_totals.py::test_any_flushes_give_the_naive_totals",
            "tests/property/test_totals.py::test_merging_usage_is_associative_and_commutative",
            _FOLD + "test_latest_is_by_time_then_offset_then_row",
        ),
    ),
    Row(
        5,
        "Usage of a period whose invoice is final",
        "charged with the next period, as an invoice item, or held, as chosen; never dropped",
        tests=(
            "tests/integration/test_stripe_sync_closed.py::test_restamped_usage_is_billed_with_the_next_day_once",
            "tests/integration/test_stripe_sync_closed.py::test_an_invoice_item_charges_what_the_final_invoice_lacks",
            "tests/integration/test_stripe_sync_closed.py::test_held_usage_is_on_no_invoice",
            "tests/integration/test_cli_run.py::test_a_replayed_late_event_is_counted_once",
        ),
        situations=("usage of a final invoice stamped into the next period",),
    ),
    Row(
        6,
        "Events older than the accepted age, or ahead of their time",
        "late, or dead, with their bytes kept, long before Stripe could refuse them",
        tests=(
            _FOLD + "test_lateness_is_judged_by_the_records_ingest_time",
            _FOLD + "test_an_event_ends_once",
            "tests/integration/test_meter_rules.py::test_meter_and_recount_judge_by_the_ledgers_rules",
        ),
        situations=("an event at the very edge of lateness",),
    ),
    Row(
        7,
        "Poison: broken JSON, NUL, depth, size, records nobody can decode",
        "dead with a reason, neighbours count, the partition moves on",
        tests=(
            _HOSTILE + "test_any_bytes_are_decoded_or_broken",
            _HOSTILE + "test_any_value_anywhere_leaves_the_neighbours_alone",
            _HOSTILE + "test_a_name_too_long_for_the_ledgers_keys_is_dead_and_its_neighbour_counts",
            _FOLD + "test_a_record_nobody_can_decode_is_dead_alone",
            _FOLD + "test_an_unknown_contract_is_dead",
            "tests/unit/meter/test_decode.py::test_headers_that_lie_make_an_unknown_record",
        ),
        situations=("a record that cannot be decoded",),
    ),
    Row(
        8,
        "A record that ends the process that reads it",
        "an event whose evaluation fails is found by halving and is dead alone",
        tests=(_FOLD + "test_an_event_that_cannot_be_evaluated_dies_alone",),
        uncovered="a record that ends the process natively, without an exception, ends each worker it comes to: "
        "nothing counts its victims yet",
    ),
    Row(
        9,
        "ingest is killed in the middle of a body",
        "what was not acknowledged gets no 2xx and comes again",
        tests=(
            "tests/e2e/test_main_path.py::test_usage_equals_the_history_when_every_service_is_killed_three_times",
        ),
        storm=_blown(Place.SERVICES, Kind.KILL),
    ),
    Row(
        10,
        "ingest is asked to end under load",
        "it drains, its last tick counts everything acknowledged, it exits 0",
        tests=(
            "tests/unit/ingest/test_group_commit.py::test_drain_seals_and_waits",
            "tests/unit/ingest/test_log.py::test_the_last_tick_is_final",
            "tests/unit/runtime/test_shutdown.py::test_service_that_drains_exits_0",
        ),
        storm=_blown(Place.SERVICES, Kind.TERMINATE),
    ),
    Row(
        11,
        "Meters are killed again and again",
        "whoever comes next goes on from the ledger's offset",
        tests=(
            "tests/integration/test_meter.py::test_a_killed_worker_is_followed_by_another",
            "tests/e2e/test_main_path.py::test_usage_equals_the_history_when_every_service_is_killed_three_times",
        ),
        storm=_KILLED_SERVICES,
        situations=("a crash with a fold staged",),
    ),
    Row(
        12,
        "A process dies at each step of its protocol",
        "the next one finds what the README's tables say",
        tests=(
            "tests/crash/test_meter_crash.py::test_a_death_at_each_step_counts_once",
            "tests/crash/test_meter_crash.py::test_a_death_in_a_handover_counts_once",
            "tests/crash/test_stripe_sync.py::test_a_death_at_any_step_doubles_and_loses_nothing",
            "tests/crash/test_webhooks_crash.py::test_a_death_at_any_step_changes_nothing",
            _COMMIT + "test_dying_at_any_statement_leaves_no_trace",
        ),
        situations=(
            "a crash between the ledger's commit and the group's",
            "a crash between dead letters and the ledger's commit",
            "a crash between marking a posting and calling Stripe",
            "a crash between Stripe's answer and its recording",
            "a crash between journal and ledger",
            "a crash between projecting and its offset",
        ),
    ),
    Row(
        13,
        "A meter sleeps past its session and wakes up",
        "its compare-and-set changes nothing",
        tests=(
            _GROUP + "test_a_zombie_counts_nothing",
            _COMMIT + "test_a_zombie_changes_nothing",
            _COMMIT + "test_two_writers_at_once_commit_once",
        ),
        storm=(
            *_blown(Place.SERVICES, Kind.PAUSE),
            *_blown(Place.KAFKA, Kind.CUT, Kind.FREEZE),
        ),
        situations=(
            "a zombie's flush before take-over, counted",
            "a zombie's flush after take-over, fenced",
        ),
    ),
    Row(
        14,
        "The group never comes to rest",
        "partitions move, counts stay exact",
        tests=(
            _FAUST + "test_random_rebalances_count_each_event_once",
            _GROUP + "test_two_workers_share_and_take_over",
        ),
        storm=_blown(Place.SERVICES, Kind.FLAP),
        situations=(
            "a crash while a partition is handed over",
            "a crash while a partition is loaded",
        ),
    ),
    Row(
        15,
        "One broker is killed, paused or restarted",
        "writing is repeated, reading moves to the new leader",
        tests=(_GROUP + "test_a_broker_that_dies_is_waited_for",),
        storm=_blown(Place.KAFKA, Kind.KILL, Kind.TERMINATE, Kind.PAUSE),
    ),
    Row(
        16,
        "Fewer brokers than an acknowledgement needs",
        "503 with a time to come back, never a 2xx",
        tests=(
            "tests/integration/test_ingest.py::test_no_success_without_an_acknowledgement",
            _HTTP + "test_no_success_without_acknowledgement",
        ),
        storm=_blown(Place.KAFKA, Kind.KILL),
    ),
    Row(
        17,
        "A broker is cut off from its clients, or from the other brokers in one direction",
        "as 15, and as 16 where too few copies are left",
        storm=_blown(Place.KAFKA, Kind.CUT, Kind.FREEZE),
    ),
    Row(
        18,
        "A slow broker, or little bandwidth to it",
        "requests wait, past a bound of bytes they are refused",
        tests=(
            _HTTP + "test_past_the_bound_of_held_bytes_requests_are_refused",
            "tests/unit/ingest/test_group_commit.py::test_no_answer_in_time_is_a_failure",
            _PIPELINE + "test_a_full_intake_holds_the_reader_and_is_flushed",
        ),
        storm=_blown(Place.KAFKA, Kind.SLOW, Kind.NARROW),
    ),
    Row(
        19,
        "Retention takes records that were not counted",
        "that partition stops and says so; nothing is skipped in silence",
        tests=(
            _LOG + "test_a_truncated_partition_is_stopped_and_the_others_counted",
            _LOG + "test_a_log_truncated_while_it_is_read_is_stopped",
            _FAUST + "test_records_deleted_under_the_reader_stop_the_partition",
        ),
        situations=("a partition stopped: truncated",),
    ),
    Row(
        20,
        "A topic is deleted, recreated, or swapped",
        "counting stops; another log is never taken for the counted one",
        tests=(
            _LOG + "test_a_recreated_topic_is_not_counted",
            _LOG + "test_a_topic_recreated_while_it_is_read_is_not_counted",
            _LOG + "test_another_cluster_or_topic_is_refused",
            "tests/integration/test_verify.py::test_a_log_that_lost_its_tail_is_found",
        ),
        situations=("a partition stopped: too_short",),
    ),
    Row(
        21,
        "A broker's disk is full",
        "its partitions are led by others; it serves again once there is room",
        storm=_blown(Place.KAFKA, Kind.FILL_DISK),
    ),
    Row(
        22,
        "The ledger's disk is full, or it may only be read",
        "the meter keeps its flush and waits; nothing is acknowledged past it",
        tests=(
            "tests/contract/ledger/test_full.py::test_a_full_ledger_is_transient",
            "tests/contract/ledger/test_full.py::test_a_ledger_that_may_only_be_read_is_transient",
            _PIPELINE + "test_an_unavailable_ledger_is_waited_for",
        ),
        storm=_blown(Place.LEDGER, Kind.FILL_DISK),
    ),
    Row(
        23,
        "PostgreSQL's sessions are ended, or its postmaster is killed",
        "the whole flush again",
        tests=(
            _COMMIT + "test_a_connection_killed_in_the_middle_leaves_no_trace",
            _ENGINE + "test_a_connection_lost_before_commit_is_transient",
            "tests/integration/test_parts.py::test_killed_postgres_keeps_what_was_committed",
        ),
        storm=_blown(Place.LEDGER, Kind.KILL_BACKENDS, Kind.KILL, Kind.CUT, Kind.FREEZE, Kind.SLOW),
    ),
    Row(
        24,
        "The connection ends between COMMIT and its answer",
        "progress is read back before anything else",
        tests=(
            _ENGINE + "test_a_connection_lost_during_commit_is_unknown",
            _PIPELINE + "test_an_unknown_commit_is_read_back",
        ),
        storm=_blown(Place.LEDGER, Kind.CUT_COMMIT),
        situations=(
            "a flush's commit lost, its outcome unknown",
            "a flush's commit done, its outcome unknown",
            "stripe_sync's commit lost, its outcome unknown",
            "stripe_sync's commit done, its outcome unknown",
        ),
    ),
    Row(
        25,
        "The ledger fails over to a copy that lacks the last commits",
        "counts are repaired from the log, postings from their journal; planning waits for both",
        tests=(
            "tests/integration/test_recovery.py::test_a_restored_ledger_ends_at_the_same_invoices",
            _SYNC + "test_a_missing_row_is_imported_from_the_journal",
            "tests/contract/ledger/test_completeness.py::test_after_a_restore_nothing_is_settled",
        ),
        situations=("a restored ledger that lacked postings",),
    ),
    Row(
        26,
        "Stripe does not answer, having counted or not",
        "the same key, identifier and body again",
        tests=(
            _SENDER + "test_no_answer_after_the_effect_is_asked_again_under_the_same_key",
            _SYNC + "test_a_fault_changes_nothing_in_the_end",
        ),
        storm=_blown(Place.STRIPE, Kind.DROP_BEFORE, Kind.DROP_AFTER, Kind.FREEZE),
        situations=(
            "a request arrived after its caller had given up",
            "a stored success replayed",
            "a duplicate identifier",
        ),
    ),
    Row(
        27,
        "Stripe answers 500, and replays it",
        "after some tries a new key, never a new identifier",
        tests=(
            _SENDER + "test_a_saved_500_is_asked_under_a_new_key_with_the_same_identifier",
            _MODES + "test_a_fault_changes_nothing_in_the_end",
        ),
        storm=_blown(Place.STRIPE, Kind.ANSWER_500, Kind.ANSWER_SAVED_500),
        situations=(
            "a 500 after the effect",
            "a stored 500 replayed",
        ),
    ),
    Row(
        28,
        "Stripe's limits: 429, an object in use",
        "calls slow down; other customers go on",
        tests=(
            _SENDER + "test_the_bucket_holds_the_rate",
            _SENDER + "test_one_broken_customer_delays_nobody",
            _SYNC + "test_a_fault_changes_nothing_in_the_end",
        ),
        storm=_blown(Place.STRIPE, Kind.ANSWER_429),
    ),
    Row(
        29,
        "Stripe is away for longer than it remembers identifiers",
        "what may have arrived is settled by its summaries, never sent again blindly",
        tests=(
            _SENDER + "test_stripe_down_for_26_hours_never_leads_to_a_blind_resend",
            _SENDER + "test_past_the_horizon_summaries_decide_and_nothing_is_sent",
            _MODES + "test_unknown_for_longer_than_stripe_remembers",
        ),
        storm=_blown(Place.STRIPE, Kind.KILL),
        situations=(
            "an identifier older than 24 hours, unknown, settled by summaries",
            "a posting found lost after a day, and posted again",
        ),
    ),
    Row(
        30,
        "Stripe refuses one customer",
        "that posting alone is parked; an operator lets it go",
        tests=(
            _SYNC + "test_one_broken_customer_stops_nobody_else",
            _SYNC + "test_a_customer_deleted_at_stripe_is_parked",
            _SYNC + "test_a_refused_posting_is_parked_and_resumed_under_a_new_key",
        ),
    ),
    Row(
        31,
        "Stripe refuses an event after its 2xx",
        "the posting is void, taken back, and made again where that can help",
        tests=(
            _WEBHOOKS + "test_meter_error_reports_become_rejections",
            "tests/contract/ledger/test_postings.py::test_a_rejected_posting_is_taken_back_and_posted_again",
            _MODES + "test_a_refusal_after_the_2xx_is_taken_back_and_posted_again",
        ),
        situations=("an asynchronous refusal reopened its chain",),
    ),
    Row(
        32,
        "Stripe refuses the key",
        "no call more, no attempt burned, not ready; it goes on by itself",
        tests=(
            _SYNC + "test_a_refused_key_stops_everything_and_says_so",
            _SENDER + "test_a_refused_key_stops_all_and_burns_nothing",
        ),
        storm=_blown(Place.STRIPE, Kind.ANSWER_401),
        situations=("the key revoked",),
    ),
    Row(
        33,
        "Two stripe_sync, one asleep while it leads",
        "the lease's version fences it; both would send one identifier",
        tests=(
            _SYNC + "test_two_processes_have_one_leader_and_a_stopped_one_doubles_nothing",
            _SENDER + "test_a_leader_that_may_have_lost_its_lease_calls_nobody",
            "tests/contract/ledger/test_postings.py::test_a_stale_lease_plans_nothing",
        ),
        storm=_blown(Place.SERVICES, Kind.PAUSE),
        situations=(
            "a standby took the lease over",
            "a lease lost while a call was in flight",
        ),
    ),
    Row(
        34,
        "Webhooks twice, in any order, replayed, forged, too large",
        "one projection an event, the newest fetch wins; a bad signature writes nothing",
        tests=(
            _WEBHOOKS + "test_customers_follow_stripe_through_duplicates_and_disorder",
            _WEBHOOKS + "test_a_bad_signature_is_refused_over_the_wire",
            "tests/integration/test_webhooks_convergence.py::test_every_order_of_late_webhooks_ends_in_one_state",
            "tests/unit/webhooks/test_http.py::test_refusals_write_nothing",
            "tests/unit/webhooks/test_http.py::test_a_body_without_length_is_capped_as_it_streams",
            _SIGNATURE + "test_the_timestamp_is_signed_too",
            _SIGNATURE + "test_the_tolerance_reaches_both_ways",
        ),
        storm=_blown(Place.CLIENTS, Kind.CUT),
        situations=("a webhook delivered twice",),
    ),
    Row(
        36,
        "Clocks that are wrong or step; ends of months",
        "windows come from events' own times, bounds and leases from elapsed time",
        tests=(
            "tests/unit/ingest/test_parts_of_ingest.py::test_ingest_time_waits_out_small_steps_back_and_follows_large_ones",
            "tests/unit/runtime/test_health.py::test_wall_clock_steps_kill_nobody",
            "tests/unit/runtime/test_clock.py::test_wall_time_steps_alone",
            "tests/unit/metering/test_completeness.py::test_a_clock_ahead_makes_nobody_look_silent",
            "tests/unit/metering/test_window.py::test_windows_are_half_open",
            _MODES + "test_usage_after_the_period_is_held_and_the_next_period_goes_on",
        ),
        situations=("a wall clock stepped back",),
    ),
    Row(
        37,
        "No processor time, or no memory",
        "as 11: a slow worker keeps its partitions or loses them, a killed one is followed",
        tests=("tests/unit/meter/test_watchdog.py::test_a_suspended_process_is_given_time",),
        storm=_blown(Place.SERVICES, Kind.STARVE, Kind.KILL),
        situations=("the whole machine suspended",),
    ),
    Row(
        38,
        "No file descriptors; senders that send nothing",
        "who comes is refused or waits; it recovers",
        tests=(
            "tests/unit/ingest/test_body.py::test_a_sender_that_stops_sending_is_refused",
            "tests/unit/webhooks/test_http.py::test_too_many_at_once_are_sent_away",
        ),
        storm=_blown(Place.SERVICES, Kind.NO_FILES),
    ),
    Row(
        40,
        "A meter changes within a period; a customer with open usage is deleted",
        "versions meet at a window's edge; usage is kept, held or billed, and visible",
        tests=(
            "tests/contract/ledger/test_catalogue.py::test_a_changed_meter_is_two_versions_at_one_boundary",
            "tests/unit/ledger/test_meter_changes.py::test_a_change_of_what_is_counted_begins_where_the_old_ends",
            _PIPELINE + "test_changed_meters_are_folded_with_from_then_on",
            "tests/contract/ledger/test_customers.py::test_a_deleted_customer_loses_unfinished_periods",
            _SYNC + "test_a_customer_deleted_at_stripe_is_parked",
        ),
        situations=(
            "a backlog across a change of meters",
            "a mapping changed while a posting was in flight",
        ),
    ),
)
