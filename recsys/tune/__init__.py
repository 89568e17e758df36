"""A search for settings that suit a log better than the defaults: trials on the validation days alone."""
