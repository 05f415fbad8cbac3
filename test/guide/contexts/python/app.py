def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"hello from {environ['SERVER_SOFTWARE']}\n".encode()]
