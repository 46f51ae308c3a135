//go:build !linux

package sys

func usage(int) (ProcessUsage, bool) { return ProcessUsage{}, false }

func childrenOf(int) []int { return nil }
