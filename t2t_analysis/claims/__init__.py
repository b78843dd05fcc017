"""The ledger: one file a claim, one rule for all, fixed before the numbers are seen."""
