package image

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/volley-run/volley/function"
)

// User is whom a program runs as.
type User struct{ UID, GID uint32 }

// FindUser returns whom an image's function runs as: the image's user, or
// fallback where the image names none or root, whom no function runs as. etc
// opens the file of that name in the image's /etc: "passwd" or "group". An
// unknown user is a *function.Error of code InvalidImage.
func (c RunConfig) FindUser(etc func(name string) (io.ReadCloser, error), fallback User) (User, error) {
	if c.User == "" {
		return fallback, nil
	}
	name, group, _ := strings.Cut(c.User, ":")
	// Of an entry, passwd has name, password, user id, group id; group has
	// name, password, group id.
	uid, gid, err := lookUp(etc, "passwd", name, 2, 3)
	if err != nil {
		return User{}, err
	}
	if group != "" {
		if gid, _, err = lookUp(etc, "group", group, 2, 2); err != nil {
			return User{}, err
		}
	}
	if uid == 0 {
		return fallback, nil
	}
	if gid == 0 && group == "" {
		gid = fallback.GID
	}
	return User{UID: uid, GID: gid}, nil
}

// lookUp finds a name, or a number that stands for itself, in a file of
// entries, and returns two of the entry's fields.
func lookUp(etc func(string) (io.ReadCloser, error), file, name string, first, second int) (a, b uint32, err error) {
	number, notNumber := strconv.ParseUint(name, 10, 32)
	f, err := etc(file)
	if err != nil {
		if notNumber == nil {
			return uint32(number), 0, nil
		}
		return 0, 0, function.Errorf(function.InvalidImage, "the image's user %q cannot be looked up: %v: use a number", name, withoutPath(err))
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) <= max(first, second) {
			continue
		}
		x, err1 := strconv.ParseUint(fields[first], 10, 32)
		y, err2 := strconv.ParseUint(fields[second], 10, 32)
		if err1 == nil && err2 == nil && (fields[0] == name || notNumber == nil && x == number) {
			return uint32(x), uint32(y), nil
		}
	}
	if notNumber == nil {
		return uint32(number), 0, nil
	}
	return 0, 0, function.Errorf(function.InvalidImage, "the image's user %q is not in its /etc/%s: use a number", name, file)
}

// withoutPath takes the path off an error, which would be one of this host.
func withoutPath(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}
