"""Keep-alives of many clients as few renewals upstream."""
