"""Caption in a service: `python examples/caption_service.py runs/ravdess/model 8000`, then

    curl --data-binary @clip.wav http://localhost:8000/

The answer is JSON: {"caption": "..."} or {"error": "..."}. One clip at a time.
"""

import io
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import soundfile

from aligncap import Captioner
from aligncap.utils.errors import UserError

MOST_BYTES = 20_000_000


def server(model: str, port: int) -> HTTPServer:
    captioner = Captioner.from_pretrained(model)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            try:
                if not 0 < length <= MOST_BYTES:
                    raise UserError(
                        f"send 1 to {MOST_BYTES} bytes of a sound file, with their Content-Length"
                    )
                samples, rate = soundfile.read(
                    io.BytesIO(self.rfile.read(length)), dtype="float32", always_2d=True
                )
                status, answer = 200, {"caption": captioner(samples.T, sampling_rate=rate)}
            except (UserError, soundfile.LibsndfileError) as error:
                status, answer = 400, {"error": str(error)}
            body = json.dumps(answer, ensure_ascii=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return HTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    server(sys.argv[1], int(sys.argv[2])).serve_forever()
