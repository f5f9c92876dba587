"""The book: tables, migrations and the few transactions, one module per owning service."""
