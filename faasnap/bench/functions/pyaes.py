# Encrypts and decrypts a text by AES in pure Python.
import hashlib

import pyaes

KEY = b"\xa1\xf6%\x8c\x87}_\xcd\x89dHE8\xbf\xc9,"


def handler(event, context):
    text = event["data"]
    sealed = pyaes.AESModeOfOperationCTR(KEY).encrypt(text)
    opened = pyaes.AESModeOfOperationCTR(KEY).decrypt(sealed)
    assert opened.decode() == text
    return {"answer": hashlib.sha256(sealed).hexdigest()}
