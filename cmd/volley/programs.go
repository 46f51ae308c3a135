package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// findProgram returns the absolute path of a program that comes with this one:
// the one that the user named by the flag, or else the one beside this
// program.
func findProgram(named, flag, name string) (string, error) {
	if named == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find this program: %w", err)
		}
		if self, err = filepath.EvalSymlinks(self); err != nil {
			return "", fmt.Errorf("find this program: %w", err)
		}
		named = filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(named); err != nil {
			return "", usagef(`%s is missing (it is built by "make build"): say where it is with %s`, named, flag)
		}
	}
	path, err := filepath.Abs(named)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return "", usagef("%s: %w", flag, err)
	}
	return path, nil
}
