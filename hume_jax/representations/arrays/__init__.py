"""Arrays on disk: formats, checks of headers and values, files that grow."""
