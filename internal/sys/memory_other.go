//go:build !linux

package sys

import "errors"

func memoryBytes() (int64, error) {
	return 0, errors.New("this system does not tell how much memory it has")
}
