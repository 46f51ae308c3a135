package bus

import (
	"fmt"
	"strings"
)

// checkSubject says what is wrong with a subject to publish to.
func checkSubject(subject string) error {
	return checkTokens(subject, false)
}

// checkPattern says what is wrong with a subject to subscribe to.
func checkPattern(pattern string) error {
	return checkTokens(pattern, true)
}

func checkTokens(subject string, wildcards bool) error {
	start := 0
	for i := 0; i <= len(subject); i++ {
		if i < len(subject) && subject[i] != '.' {
			if c := subject[i]; c <= ' ' || c == 0x7f {
				return fmt.Errorf("subject %q: has a blank or control character", subject)
			}
			continue
		}
		switch token := subject[start:i]; {
		case token == "":
			return fmt.Errorf("subject %q: has an empty token", subject)
		case token != "*" && token != ">":
		case !wildcards:
			return fmt.Errorf("subject %q: has a wildcard, which only subscriptions may have", subject)
		case token == ">" && i != len(subject):
			return fmt.Errorf("subject %q: has \">\" before its end", subject)
		}
		start = i + 1
	}
	return nil
}

// matches tells whether a subject is one that the pattern stands for.
func matches(pattern, subject string) bool {
	for {
		want, pattern2, morePattern := strings.Cut(pattern, ".")
		if want == ">" {
			return true
		}
		have, subject2, moreSubject := strings.Cut(subject, ".")
		if want != "*" && want != have || morePattern != moreSubject {
			return false
		}
		if !morePattern {
			return true
		}
		pattern, subject = pattern2, subject2
	}
}

// checkName says what is wrong with the name of a bucket, queue or log.
func checkName(kind, name string) error {
	if name == "" {
		return fmt.Errorf("%s name is empty", kind)
	}
	for i := range len(name) {
		if c := name[i]; !isAlphanumeric(c) && c != '-' && c != '_' {
			return fmt.Errorf("%s name %q: only letters, digits, \"-\" and \"_\" may be in it", kind, name)
		}
	}
	return nil
}

// checkKey says what is wrong with a key of a KV.
func checkKey(key string) error {
	if key == "" || key[0] == '.' || key[len(key)-1] == '.' || strings.Contains(key, "..") {
		return fmt.Errorf("key %q: is empty, or has a dot at an end or two in a row", key)
	}
	for i := range len(key) {
		if c := key[i]; !isAlphanumeric(c) && !strings.ContainsRune("-_.=/$", rune(c)) {
			return fmt.Errorf("key %q: only letters, digits and \"-_.=/$\" may be in it", key)
		}
	}
	return nil
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// withDefaults fills in what a caller left open.
func (o QueueOptions) withDefaults() QueueOptions {
	if o.AckWait <= 0 {
		o.AckWait = defaultAckWait
	}
	if o.MaxPending <= 0 {
		o.MaxPending = defaultMaxPending
	}
	if o.DedupeWindow <= 0 {
		o.DedupeWindow = defaultDedupeWindow
	}
	return o
}
