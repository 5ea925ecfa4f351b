"""From a file of prompts to rows of work, streamed; bad rows are set apart."""
