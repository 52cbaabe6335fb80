"""The validated plan of an audit."""
