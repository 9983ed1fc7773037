"""A face for people and for programs: HTTP API and page (extra `serve`)."""
