package store

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/johannesboyne/gofakes3"

	"github.com/volley-run/volley/internal/sigv4"
)

const (
	// chunkLineBytes bounds a line between chunks: a size with a signature, or
	// a trailer.
	chunkLineBytes = 4096
	// chunkMaxTrailers bounds the trailers of one body.
	chunkMaxTrailers = 16
)

// chain is what the signatures of a body's chunks build on.
type chain struct {
	timestamp, scope string
	// previous is the signature before: at first that of the request.
	previous string
	sign     func(text string) string
}

// chunkedBody replaces r's body, which is in the aws-chunked encoding that
// payload names, with what it holds, and changes the headers to match.
func chunkedBody(r *http.Request, payload string, signatures chain) *refusal {
	bad := func(message string) *refusal {
		return &refusal{http.StatusBadRequest, gofakes3.ErrInvalidArgument, message}
	}
	d := &chunkReader{chain: signatures}
	switch payload {
	case "STREAMING-AWS4-HMAC-SHA256-PAYLOAD":
		d.signed = true
	case "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER":
		d.signed, d.trailer = true, true
	case "STREAMING-UNSIGNED-PAYLOAD-TRAILER":
		d.trailer = true
	default:
		return bad("the body is in an encoding that is not known here: " + payload)
	}
	size, err := strconv.ParseInt(r.Header.Get("X-Amz-Decoded-Content-Length"), 10, 64)
	if err != nil || size < 0 {
		return bad("the header x-amz-decoded-content-length is missing or no length")
	}
	d.left = size
	d.r = bufio.NewReaderSize(r.Body, chunkLineBytes)
	r.Body = struct {
		io.Reader
		io.Closer
	}{d, r.Body}
	r.ContentLength = size
	r.Header.Set("Content-Length", strconv.FormatInt(size, 10))
	r.Header.Set("X-Amz-Content-Sha256", sigv4.UnsignedPayload)
	var encodings []string
	for encoding := range strings.SplitSeq(r.Header.Get("Content-Encoding"), ",") {
		if e := strings.TrimSpace(encoding); e != "" && e != "aws-chunked" {
			encodings = append(encodings, e)
		}
	}
	r.Header.Del("Content-Encoding")
	if len(encodings) > 0 {
		r.Header.Set("Content-Encoding", strings.Join(encodings, ","))
	}
	return nil
}

// chunkReader reads the content of a body in aws-chunked encoding: chunks,
// each with its size in hexadecimal and, if signed, a signature that covers it
// and the signature before; an empty chunk; and trailers. Checksums in trailers
// are read over; of a signed body their signature is checked.
type chunkReader struct {
	r *bufio.Reader
	chain
	signed, trailer bool
	signature       string // of the chunk being read
	hash            hash.Hash
	chunkLeft, left int64
	inChunk, ended  bool
	err             error
}

// Read returns io.EOF only after the whole body, with all signatures, has
// turned out well.
func (d *chunkReader) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	for !d.inChunk && !d.ended {
		if d.err = d.nextChunk(); d.err != nil {
			return 0, d.err
		}
	}
	if d.ended {
		d.err = io.EOF
		return 0, io.EOF
	}
	n, err := d.r.Read(p[:min(int64(len(p)), d.chunkLeft)])
	if d.signed {
		d.hash.Write(p[:n])
	}
	d.chunkLeft -= int64(n)
	d.left -= int64(n)
	switch {
	case err == io.EOF:
		d.err = io.ErrUnexpectedEOF
	case err != nil:
		d.err = err
	case d.chunkLeft == 0:
		d.err = d.endChunk()
	}
	return n, d.err
}

// nextChunk reads the head of a chunk, and all that follows if it is the last.
func (d *chunkReader) nextChunk() error {
	line, err := d.line()
	if err != nil {
		return err
	}
	sizeText, extension, _ := strings.Cut(line, ";")
	size, err := strconv.ParseInt(sizeText, 16, 64)
	if err != nil || size < 0 {
		return badChunk("a chunk has no size")
	}
	if size > d.left {
		return gofakes3.ErrIncompleteBody
	}
	if d.signed {
		var ok bool
		if d.signature, ok = strings.CutPrefix(extension, "chunk-signature="); !ok {
			return badChunk("a chunk is not signed")
		}
		d.hash = sha256.New()
	}
	if size > 0 {
		d.chunkLeft, d.inChunk = size, true
		return nil
	}
	if d.left > 0 {
		return gofakes3.ErrIncompleteBody
	}
	if err := d.checkChunk(); err != nil {
		return err
	}
	if err := d.trailers(); err != nil {
		return err
	}
	d.ended = true
	// Reading on to the end of the body lets the connection be used again.
	_, err = io.Copy(io.Discard, d.r)
	return err
}

// endChunk checks a chunk whose content has been read.
func (d *chunkReader) endChunk() error {
	d.inChunk = false
	line, err := d.line()
	if err != nil {
		return err
	}
	if line != "" {
		return badChunk("a chunk is longer than its size")
	}
	return d.checkChunk()
}

func (d *chunkReader) checkChunk() error {
	if !d.signed {
		return nil
	}
	return d.check("AWS4-HMAC-SHA256-PAYLOAD", sigv4.EmptySHA256+"\n"+hex.EncodeToString(d.hash.Sum(nil)), d.signature)
}

// check compares a signature in the chain and makes it the previous one.
func (d *chunkReader) check(algorithm, content, signature string) error {
	want := d.sign(algorithm + "\n" + d.timestamp + "\n" + d.scope + "\n" + d.previous + "\n" + content)
	if !hmac.Equal([]byte(want), []byte(signature)) {
		return badChunk("the signature of a part of the body does not match")
	}
	d.previous = want
	return nil
}

// trailers reads the lines after the last chunk.
func (d *chunkReader) trailers() error {
	var canonical strings.Builder
	for range chunkMaxTrailers {
		line, err := d.line()
		if line == "" && (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) {
			if d.signed && d.trailer {
				return badChunk("the trailers are not signed")
			}
			return nil
		}
		if err != nil {
			return err
		}
		name, value, ok := strings.Cut(line, ":")
		switch {
		case !ok || !d.trailer:
			return badChunk("the body goes on after its last chunk")
		case d.signed && strings.EqualFold(name, "x-amz-trailer-signature"):
			return d.check("AWS4-HMAC-SHA256-TRAILER", hexSHA256(canonical.String()), strings.TrimSpace(value))
		}
		canonical.WriteString(strings.ToLower(name) + ":" + strings.TrimSpace(value) + "\n")
	}
	return badChunk("the body has too many trailers")
}

// line reads up to the end of a line, which it leaves out.
func (d *chunkReader) line() (string, error) {
	line, err := d.r.ReadSlice('\n')
	text := strings.TrimRight(string(line), "\r\n")
	switch {
	case err == io.EOF:
		return text, io.ErrUnexpectedEOF
	case errors.Is(err, bufio.ErrBufferFull):
		return "", badChunk("a line between chunks is too long")
	}
	return text, err
}

func badChunk(message string) error {
	return gofakes3.ErrorMessage(gofakes3.ErrBadDigest, message)
}
