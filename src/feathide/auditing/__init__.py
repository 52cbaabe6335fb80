"""An audit: preflight, run, report, verification, export."""
