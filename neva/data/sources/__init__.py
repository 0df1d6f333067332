"""Files of records: each source opens one form of them."""
