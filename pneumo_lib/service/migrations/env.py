"""What alembic runs around the revisions: on the connection that `History.upgrade` hands over, in its transaction."""

from alembic import context


def run() -> None:
    """Bring the database to the revision that was asked for."""
    context.configure(connection=context.config.attributes["connection"])
    with context.begin_transaction():
        context.run_migrations()


if __name__ == "env_py":  # so alembic calls this file when it runs it; a plain import does nothing
    run()
