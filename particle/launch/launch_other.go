//go:build !linux

package launch

import (
	"context"
	"errors"
	"fmt"
)

func execute(o Options, argv []string) error {
	_, err := run(context.Background(), o, argv, Stdio{})
	return err
}

func run(_ context.Context, o Options, argv []string, _ Stdio) (int, error) {
	if _, err := o.check(argv); err != nil {
		return -1, err
	}
	if _, err := o.env(); err != nil {
		return -1, err
	}
	return -1, fmt.Errorf("enter endpoint: %w on this system", errors.ErrUnsupported)
}
