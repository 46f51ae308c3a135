# Applies a grayscale filter to a second of video (frames of JPEG).
import base64
import hashlib
import subprocess


def handler(event, context):
    command = "ffmpeg -v error -nostdin -threads 1 -f mjpeg -i pipe:0 -vf hue=s=0 -c:v mpeg4 -q:v 5 -fflags +bitexact -flags +bitexact -f avi pipe:1"
    done = subprocess.run(command.split(), input=base64.b64decode(event["data"]), capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return {"answer": hashlib.sha256(done.stdout).hexdigest()}
