package sophon

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// start is some time.
var start = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC) // constant

// checkCluster complains about whatever in a cluster does not fit together.
func checkCluster(t interface{ Fatalf(string, ...any) }, c *Cluster) {
	most, leader := int64(math.MinInt64), -1
	var busyMB, capacityMB int64
	idleOf, allOf := map[*Function]int{}, map[*Function]int{}
	for i, n := range c.nodes {
		if n.index != i || c.byName[n.name] != n {
			t.Fatalf("node %s has index %d at %d", n.name, n.index, i)
		}
		checkNode(t, c, n, idleOf, allOf)
		if n.open() && n.AvailableMB() > most {
			most, leader = n.AvailableMB(), i
		}
		if n.online {
			busyMB, capacityMB = busyMB+n.busyMB, capacityMB+n.capacityMB
		}
	}
	v := ViewOf(c)
	if got := v.MostAvailable(); (got == nil) != (leader < 0) || got != nil && got.index != leader {
		t.Fatalf("the node with the most available memory is %d, not %v", leader, got)
	}
	if gotBusy, gotCapacity := v.Load(); gotBusy != busyMB || gotCapacity != capacityMB {
		t.Fatalf("load is %d of %d, not %d of %d", busyMB, capacityMB, gotBusy, gotCapacity)
	}
	indexes := map[int]bool{}
	for key, f := range c.functions {
		if f.Key != key || indexes[f.index] {
			t.Fatalf("function %s is %s, index %d", key, f.Key, f.index)
		}
		indexes[f.index] = true
		if f.containers != allOf[f] || len(f.Idle()) != idleOf[f] {
			t.Fatalf("function %s has %d containers, %d idle, and counts %d and %d", key, allOf[f], idleOf[f], f.containers, len(f.Idle()))
		}
		for i, g := range f.warm {
			if g.slot != i || g.newest == nil || g.node.groups[f] != g || g.nodeIndex != g.node.index || int(f.warmNodes[i]) != g.nodeIndex {
				t.Fatalf("function %s: warm group %d is not in order", key, i)
			}
		}
	}
}

func checkNode(t interface{ Fatalf(string, ...any) }, c *Cluster, n *Node, idleOf, allOf map[*Function]int) {
	var busy, idle int64
	groups := map[*Group]int{}
	idleIn := map[*Group]int{}
	for id, ct := range n.containers {
		if ct.id != id || ct.group.node != n || n.groups[ct.group.function] != ct.group || c.functions[ct.group.function.Key] != ct.group.function {
			t.Fatalf("container %s is filed wrongly", id)
		}
		groups[ct.group]++
		allOf[ct.group.function]++
		if ct.state.evictable() {
			idle += ct.memoryMB
			idleIn[ct.group]++
			idleOf[ct.group.function]++
		} else {
			busy += ct.memoryMB
		}
	}
	if busy+n.reservedMB != n.busyMB || idle != n.idleMB || n.reservedMB < 0 {
		t.Fatalf("node %s has %d+%d MiB busy and %d idle, and counts %d and %d", n.name, busy, n.reservedMB, idle, n.busyMB, n.idleMB)
	}
	if len(groups) != len(n.groups) {
		t.Fatalf("node %s has %d groups, not %d", n.name, len(n.groups), len(groups))
	}
	listed := 0
	var prev *Container
	for ct := n.first; ct != nil; prev, ct = ct, ct.next {
		if ct.prev != prev || !ct.state.evictable() || ct.group.node != n {
			t.Fatalf("the victims of node %s are not linked", n.name)
		}
		if prev != nil && c.evictedBefore(ct, prev) {
			t.Fatalf("the victims of node %s are not in order", n.name)
		}
		listed++
	}
	if prev != n.last || listed != n.idle || n.Active() != len(n.containers)-listed {
		t.Fatalf("node %s lists %d victims and counts %d idle, %d active", n.name, listed, n.idle, n.Active())
	}
	for g, all := range groups {
		chained := 0
		var newer *Container
		for ct := g.newest; ct != nil; newer, ct = ct, ct.older {
			if ct.newer != newer || ct.group != g || newer != nil && newer.lastUsed.Before(ct.lastUsed) {
				t.Fatalf("a group of node %s is not linked in order", n.name)
			}
			chained++
		}
		if g.containers != all || chained != idleIn[g] || (g.slot >= 0) != (chained > 0) {
			t.Fatalf("a group of node %s has %d containers, %d idle, slot %d", n.name, all, chained, g.slot)
		}
		listed -= chained
	}
	if listed != 0 {
		t.Fatalf("node %s: groups and victims differ by %d", n.name, listed)
	}
}

// byUse is a KeepAlive that evicts what was used least often first.
type byUse struct{ evicted int }

func (*byUse) Priority(c *Container, _ time.Time) float64 { return float64(c.Uses()) }
func (k *byUse) Evicted(*Container)                       { k.evicted++ }

func TestClusterStaysConsistentWhateverHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var keep KeepAlive
		if rapid.Bool().Draw(t, "keepAlive") {
			keep = &byUse{}
		}
		c := NewCluster(keep)
		now := start
		ids := 0
		containers := func() []*Container {
			var out []*Container
			for _, n := range c.nodes {
				out = append(out, n.sorted()...)
			}
			return out
		}
		node := func(t *rapid.T) *Node {
			if len(c.nodes) == 0 {
				t.Skip("no node")
			}
			return rapid.SampledFrom(c.nodes).Draw(t, "node")
		}
		container := func(t *rapid.T) *Container {
			all := containers()
			if len(all) == 0 {
				t.Skip("no container")
			}
			return rapid.SampledFrom(all).Draw(t, "container")
		}
		function := func(t *rapid.T) *Function {
			i := rapid.IntRange(0, 3).Draw(t, "function")
			return c.Intern(fmt.Sprintf("f%d@1", i), fmt.Sprintf("f%d", i), int64(100*(i+1)))
		}
		t.Repeat(map[string]func(t *rapid.T){
			"add": func(t *rapid.T) {
				c.AddNode("n"+strconv.Itoa(rapid.IntRange(0, 9).Draw(t, "name")), rapid.Int64Range(0, 2000).Draw(t, "capacity"))
			},
			"remove node": func(t *rapid.T) { c.RemoveNode(node(t)) },
			"online":      func(t *rapid.T) { c.SetOnline(node(t), rapid.Bool().Draw(t, "online")) },
			"hold":        func(t *rapid.T) { c.hold(node(t), rapid.Bool().Draw(t, "held")) },
			"clear":       func(t *rapid.T) { c.Clear(node(t)) },
			"start": func(t *rapid.T) {
				ids++
				f := function(t)
				c.Start(node(t), f, strconv.Itoa(ids), f.MemoryMB, now)
			},
			"state": func(t *rapid.T) {
				at := now.Add(-time.Duration(rapid.IntRange(0, 3).Draw(t, "ago")) * time.Second)
				c.SetState(container(t), rapid.SampledFrom([]State{Starting, Busy, Idle, Idle, Paused}).Draw(t, "state"), at)
			},
			"remove": func(t *rapid.T) { c.Remove(container(t)) },
			"evict":  func(t *rapid.T) { c.Evict(container(t)) },
			"forget": func(t *rapid.T) { c.Forget(function(t)) },
			"retire": func(t *rapid.T) { c.Retire(function(t)) },
			"time":   func(*rapid.T) { now = now.Add(time.Second) },
			"":       func(t *rapid.T) { checkCluster(t, c) },
		})
	})
}

func TestVictimsAreTheLeastRecentlyUsedAndNoMoreThanNeeded(t *testing.T) {
	c := NewCluster(nil)
	n := c.AddNode("n", 1000)
	f := c.Intern("f@1", "f", 300)
	for i := range 3 {
		ct := c.Start(n, f, strconv.Itoa(i), 300, start)
		c.SetState(ct, Idle, start.Add(time.Duration(3-i)*time.Second))
	}
	for _, tc := range []struct {
		memoryMB int64
		want     []string
		ok       bool
	}{
		{100, nil, true},
		{101, []string{"2"}, true},
		{400, []string{"2"}, true},
		{700, []string{"2", "1"}, true},
		{1000, []string{"2", "1", "0"}, true},
		{1001, nil, false},
	} {
		victims, ok := n.Victims(tc.memoryMB)
		var ids []string
		for _, v := range victims {
			ids = append(ids, v.ID())
		}
		if ok != tc.ok || !slices.Equal(ids, tc.want) {
			t.Errorf("%d MiB: victims %v, %v; want %v, %v", tc.memoryMB, ids, ok, tc.want, tc.ok)
		}
	}
}

func TestAKeepAliveOrdersEvictionAndHearsOfIt(t *testing.T) {
	keep := &byUse{}
	c := NewCluster(keep)
	n := c.AddNode("n", 1000)
	f := c.Intern("f@1", "f", 100)
	for i := range 3 {
		ct := c.Start(n, f, strconv.Itoa(i), 100, start)
		for range 3 - i {
			c.SetState(ct, Busy, start)
			c.SetState(ct, Idle, start)
		}
	}
	if got := n.FirstVictim().ID(); got != "2" {
		t.Errorf("the first victim is %s, not the one used least", got)
	}
	c.Evict(n.FirstVictim())
	if keep.evicted != 1 {
		t.Errorf("the KeepAlive heard of %d evictions", keep.evicted)
	}
}

func TestPausingKeepsThePlaceInTheOrderOfEviction(t *testing.T) {
	c := NewCluster(nil)
	n := c.AddNode("n", 1000)
	f := c.Intern("f@1", "f", 100)
	a, b := c.Start(n, f, "a", 100, start), c.Start(n, f, "b", 100, start)
	c.SetState(a, Idle, start)
	c.SetState(b, Idle, start.Add(time.Second))
	c.SetState(a, Paused, start.Add(2*time.Second))
	if n.FirstVictim() != a || !a.LastUsed().Equal(start) || n.IdleMB() != 200 {
		t.Errorf("first victim %s, last used %v, %d MiB idle", n.FirstVictim().ID(), a.LastUsed(), n.IdleMB())
	}
	c.SetState(a, Busy, start.Add(5*time.Second))
	if a.Rested() != 5*time.Second || a.Uses() != 1 {
		t.Errorf("rested %v, used %d times", a.Rested(), a.Uses())
	}
}

func TestManyRevisionsLeaveNothingBehind(t *testing.T) {
	c := NewCluster(nil)
	n := c.AddNode("n", 1000)
	for i := range 10_000 {
		f := c.Intern("f@"+strconv.Itoa(i), "f", 100)
		ct := c.Start(n, f, strconv.Itoa(i), 100, start)
		c.Retire(f)
		if c.Functions() != 1 {
			t.Fatalf("%d functions are known while one has a container", c.Functions())
		}
		c.Remove(ct)
	}
	if c.Functions() != 0 || len(n.groups) != 0 || len(c.indexes) != 1 {
		t.Errorf("%d functions, %d groups, %d indexes are left", c.Functions(), len(n.groups), len(c.indexes))
	}
}

func TestInterningARetiredFunctionKeepsIt(t *testing.T) {
	c := NewCluster(nil)
	n := c.AddNode("n", 1000)
	f := c.Intern("f@1", "f", 100)
	ct := c.Start(n, f, "a", 100, start)
	c.Retire(f)
	if c.Intern("f@1", "f", 100) != f {
		t.Fatal("there are two records of one function")
	}
	c.Remove(ct)
	if c.Functions() != 1 {
		t.Error("the function was forgotten although it was interned again")
	}
}

func TestHashNameIsJavas(t *testing.T) {
	for name, want := range map[string]uint32{
		"": 0, "a": 97, "hello": 99162322, "Hello, World!": 1498789909,
		"polygenelubricants": 1 << 31, // Integer.MIN_VALUE, which has no positive counterpart
	} {
		if got := HashName(name); got != want {
			t.Errorf("HashName(%q) = %d, want %d", name, got, want)
		}
	}
}

func TestStatesHaveNames(t *testing.T) {
	for s, want := range map[State]string{Starting: "starting", Busy: "busy", Idle: "idle", Paused: "paused", Gone: "gone", 9: "State(9)"} {
		if s.String() != want {
			t.Errorf("%d is called %s, want %s", s, s, want)
		}
	}
}
