"""How nano was trained: `prepare`, then `samjax train` with the settings beside it."""
