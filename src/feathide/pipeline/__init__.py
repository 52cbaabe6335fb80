"""The steps of an audit, from a plan to its table."""
