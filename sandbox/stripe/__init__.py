"""A stateful stand-in for Stripe, spoken to only over HTTP.

Owns: what Stripe would answer, remember, bill and send back. Refuses to know: anything of the programs
that call it; it imports no service and no metering rule, so that agreeing with it means something.
"""
