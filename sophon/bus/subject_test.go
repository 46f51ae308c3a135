package bus

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestInterestFindsWhatMatches holds the tree of subscriptions against the
// plain definition of what a pattern stands for.
func TestInterestFindsWhatMatches(t *testing.T) {
	tokens := rapid.SampledFrom([]string{"a", "b", "c"})
	subjects := rapid.Map(rapid.SliceOfN(tokens, 1, 4), func(s []string) string { return strings.Join(s, ".") })
	patterns := rapid.Custom(func(t *rapid.T) string {
		p := rapid.SliceOfN(rapid.OneOf(tokens, rapid.Just("*")), 0, 4).Draw(t, "tokens")
		if len(p) == 0 || rapid.Bool().Draw(t, "rest") {
			p = append(p, ">")
		}
		return strings.Join(p, ".")
	})
	rapid.Check(t, func(t *rapid.T) {
		conn := &memoryConn{server: NewMemory()}
		conn.connected.Store(true)
		var tree interest
		var subs []*memorySub
		for _, p := range rapid.SliceOf(patterns).Draw(t, "patterns") {
			if err := checkPattern(p); err != nil {
				t.Fatal(err)
			}
			s := &memorySub{conn: conn, pattern: p, wake: make(chan struct{}, 1)}
			subs = append(subs, s)
			tree.add(s)
		}
		for _, s := range slices.Clone(subs) {
			if rapid.Bool().Draw(t, "remove") {
				tree.remove(s)
				subs = without(subs, s)
			}
		}
		subject := subjects.Draw(t, "subject")
		if err := checkSubject(subject); err != nil {
			t.Fatal(err)
		}
		want := 0
		for _, s := range subs {
			if matches(s.pattern, subject) {
				want++
			}
		}
		if have := tree.deliver(subject, "", nil); have != want {
			t.Fatalf("%s went to %d subscriptions, want %d", subject, have, want)
		}
		for _, s := range subs {
			if have := len(s.queue) == 1; have != matches(s.pattern, subject) {
				t.Errorf("%s for %s: delivered %t", subject, s.pattern, have)
			}
			tree.remove(s)
		}
		if len(tree.root.next) != 0 || len(tree.root.rest) != 0 {
			t.Error("the empty tree has nodes")
		}
	})
}

func TestMatchesFollowsTheWildcards(t *testing.T) {
	for _, c := range []struct {
		pattern, subject string
		want             bool
	}{
		{"a", "a", true},
		{"a", "a.b", false},
		{"a.b", "a", false},
		{"*", "a", true},
		{"*", "a.b", false},
		{">", "a.b.c", true},
		{"a.>", "a", false},
		{"a.>", "a.b.c", true},
		{"a.*.c", "a.b.c", true},
		{"a.*.c", "a.b.d", false},
		{"*.*", "a.b", true},
	} {
		if have := matches(c.pattern, c.subject); have != c.want {
			t.Errorf("%s stands for %s: %t", c.pattern, c.subject, have)
		}
	}
}

func TestKeysKeepTheirNamesInNATS(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringOf(rapid.SampledFrom([]rune("aES=$.-_/"))).Draw(t, "key")
		encoded := keyEncoder.Replace(key)
		if strings.Contains(encoded, "$") {
			t.Errorf("%q became %q", key, encoded)
		}
		if have := keyDecoder.Replace(encoded); have != key {
			t.Errorf("%q became %q", key, have)
		}
	})
}
