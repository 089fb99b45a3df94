"""A real Gitea for one test: it is built once from its Go module (`build`), and run on 127.0.0.1
(`server`)."""
