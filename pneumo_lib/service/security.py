"""Who may ask, from where, and what a browser may do with the answer."""

import hashlib
import hmac
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, abort, current_app, g, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from pneumo_lib.errors import ServiceError
from pneumo_lib.service import faults
from pneumo_lib.service.settings import FORM_BYTES, LOOPBACK, Settings

COOKIE = "pneumo"
OPEN = ("security.login", "static", "bootstrap.static", "api.health", "api.ready", "pages.language")
UPLOADS = ("api.diagnose", "pages.diagnose")
SAFE = ("GET", "HEAD", "OPTIONS")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

blueprint = Blueprint("security", __name__)


def install(app: Flask) -> None:
    """Guard every route of an application; the routes of `OPEN` need no token."""
    app.before_request(_guard)
    app.after_request(_finish)
    app.register_blueprint(blueprint)


@blueprint.route("/login", methods=["GET", "POST"])
def login() -> AnyResponse | str | tuple[str, int]:
    """The page that takes the token; its cookie is the only one that a visitor without a choice of language gets."""
    token = _settings().token
    if not token:
        abort(404)
    if request.method == "GET":
        return render_template("login.html", error="")
    if not _same(request.form.get("token", "").strip().encode("utf-8", "replace"), token):
        return render_template("login.html", error="wrong"), 401
    response = redirect(url_for("pages.home"))
    options = {"httponly": True, "samesite": "Strict", "secure": request.is_secure}
    response.set_cookie(COOKIE, _session(token), **options)
    return response


def _guard() -> AnyResponse | None:
    g.request_id = faults.new_request_id()
    if request.endpoint not in UPLOADS or request.mimetype != "multipart/form-data":
        request.max_content_length = FORM_BYTES
    token = _settings().token
    if not token and _host(request.host) not in LOOPBACK:
        called = request.headers.get("Host", "nothing at all")
        raise ServiceError(f"the service is not called {called[:80]!r}", code="forbidden")
    if request.method not in SAFE and _foreign():
        raise ServiceError("another site's page sent this request", code="forbidden")
    if not token or request.endpoint in OPEN or _known(token):
        return None
    if request.path.startswith("/api/") or request.method not in SAFE:
        raise ServiceError("the service asks for its token", code="unauthorised")
    return redirect(url_for("security.login"))


def _foreign() -> bool:
    """Whether a browser says that the request comes from elsewhere; other programs say nothing (Fetch Metadata)."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return site not in ("same-origin", "none")
    try:
        return origin is not None and urlsplit(origin).netloc != request.host
    except ValueError:  # no address at all
        return True


def _known(token: str) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return _same(given.strip().encode("latin-1", "replace"), token)  # as WSGI hands headers over
    return _same(request.cookies.get(COOKIE, "").encode("utf-8", "replace"), _session(token))


def _session(token: str) -> str:
    """What the cookie holds: nothing from which the token could be had."""
    return hmac.new(token.encode(), b"pneumo session", hashlib.sha256).hexdigest()


def _same(given: bytes, secret: str) -> bool:
    return hmac.compare_digest(given, secret.encode())


def _host(host: str) -> str:
    """The name without its port."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    return name.strip("[]").lower()


def _finish(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if request.endpoint not in ("static", "bootstrap.static"):
        response.headers["Cache-Control"] = "no-store"
    if response.status_code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    response.headers["X-Request-Id"] = g.get("request_id", "")
    return response


def _settings() -> Settings:
    return current_app.extensions["pneumo"].settings
