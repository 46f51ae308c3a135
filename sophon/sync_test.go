package sophon

import (
	"testing"
	"time"
)

func TestSyncFindsJobsThatAreLostAndKeepsThoseOnTheirWay(t *testing.T) {
	b := newBed(t, ContainerGrained, 2000)
	known, _ := b.placed("a.1")
	lost, _ := b.placed("a.2")
	flying, _ := b.placed("a.3")
	unsent, _ := b.placed("a.4")
	known.Seq, lost.Seq, flying.Seq = 1, 2, 3
	got := b.Sync(b.node(0), []Change{b.change("c1", Busy, known)}, 2, b.now)
	b.expect("lost", ids(got), []string{"a.2"})
	b.expect("memory in use", b.node(0).BusyMB(), int64(1200))
	b.expect("containers", []string{known.Container().ID(), flying.Container().ID(), unsent.Container().ID()}, []string{"c1", "c3", "c4"})
	if lost.Node() != nil || b.Running() != 3 {
		t.Errorf("the lost job is on %v, %d run", lost.Node(), b.Running())
	}
}

func TestSyncGivesAJobOnItsWayTheSpareOfAContainerThatIsGone(t *testing.T) {
	b := newBed(t, ContainerGrained, 1000)
	first, _ := b.placed("a.1")
	b.done(first, "c1")
	j, p := b.placed("a.2")
	j.Seq = 7
	b.expect("lost", ids(b.Sync(b.node(0), nil, 6, b.now)), []string(nil))
	b.expect("container", j.Container().ID(), p.Container)
	b.expect("memory in use", b.node(0).BusyMB(), int64(400))
	b.Apply(b.node(0), []Change{b.change(p.Container, Busy, j)}, b.now)
	b.expect("memory in use", b.node(0).BusyMB(), int64(400))
}

func TestSyncKeepsNodeGrainedReservations(t *testing.T) {
	b := newBed(t, NodeGrained, 1000)
	flying, _ := b.placed("a.1")
	flying.Seq = 2
	gone, _ := b.placed("a.2")
	gone.Seq = 1
	b.expect("lost", ids(b.Sync(b.node(0), nil, 1, b.now)), []string{"a.2"})
	b.expect("reserved", b.node(0).ReservedMB(), int64(400))
}

func TestSyncDoesNotBringBackWhatAMessageOnItsWayEvicts(t *testing.T) {
	b := newBed(t, ContainerGrained, 1000)
	first, _ := b.placed("a.1")
	b.done(first, "c1")
	j, p := b.placed("big.1")
	b.expect("evicted", p.Evict, []string{"c1"})
	p.Sent(5)
	b.expect("seq", j.Seq, uint64(5))
	b.Sync(b.node(0), []Change{b.change("c1", Idle, first)}, 4, b.now)
	b.expect("memory", [2]int64{b.node(0).BusyMB(), b.node(0).IdleMB()}, [2]int64{800, 0})
	b.Sync(b.node(0), []Change{b.change("c1", Idle, first), b.change("c2", Starting, j)}, 5, b.now)
	b.expect("memory", [2]int64{b.node(0).BusyMB(), b.node(0).IdleMB()}, [2]int64{800, 400})
}

func TestSyncKeepsPrewarmedContainersUntilTheInvokerMustKnowThem(t *testing.T) {
	b := newBed(t, ContainerGrained, 1000)
	p, ok := b.Prewarm(b.function("a"), b.node(0), b.now)
	if !ok {
		t.Fatal("no room")
	}
	p.Sent(3)
	b.Sync(b.node(0), nil, 2, b.now)
	b.expect("on its way", b.node(0).BusyMB(), int64(400))
	b.Sync(b.node(0), nil, 3, b.now)
	b.expect("lost", b.node(0).BusyMB(), int64(0))

	b.Prewarm(b.function("a"), b.node(0), b.now) // nobody tells when it was sent
	b.Sync(b.node(0), nil, 3, b.now)
	b.expect("spared once", b.node(0).BusyMB(), int64(400))
	b.Sync(b.node(0), nil, 3, b.now)
	b.expect("not twice", b.node(0).BusyMB(), int64(0))
}

func TestSyncKeepsTheOrderOfEviction(t *testing.T) {
	b := newBed(t, ContainerGrained, 2000)
	f := b.function("a")
	full := func() []Change {
		var out []Change
		for i, id := range []string{"new", "old", "middle"} {
			out = append(out, Change{Container: id, State: Idle, Function: f, MemoryMB: 400, Uses: 7,
				Used: start.Add(-time.Duration([]int{1, 9, 5}[i]) * time.Minute), Made: start.Add(-time.Hour)})
		}
		return out
	}
	order := func() []string {
		var out []string
		for c := b.node(0).FirstVictim(); c != nil; c = c.NextVictim() {
			out = append(out, c.ID())
		}
		return out
	}
	want := []string{"old", "middle", "new"}
	b.Sync(b.node(0), full(), 0, b.now)
	b.expect("of unknown containers", order(), want)
	c := b.node(0).FirstVictim()
	b.expect("what is known of one", [3]any{c.Uses(), c.Made(), c.LastUsed()}, [3]any{7, start.Add(-time.Hour), start.Add(-9 * time.Minute)})
	b.now = b.now.Add(time.Minute)
	b.Sync(b.node(0), full(), 0, b.now)
	b.expect("of known ones", order(), want)
	if b.node(0).FirstVictim() != c {
		t.Error("a known container was replaced")
	}
}

func TestLoseForgetsTheNodesContainersAndReturnsItsJobs(t *testing.T) {
	b := newBed(t, ContainerGrained, 1000, 1000)
	first, _ := b.placed("big.1")
	second, _ := b.placed("a.1")
	third, _ := b.placed("a.2")
	second.Seq, third.Seq = 2, 1
	b.expect("lost", ids(b.Lose(b.node(1), b.now)), []string{"a.2", "a.1"})
	b.expect("running", b.Running(), 1)
	if first.Node() != b.node(0) || len(b.node(1).containers) != 0 || b.node(1).Online() {
		t.Error("the other node is not as it was, or the lost one not empty and offline")
	}
	b.queued("big.2")
}

func TestEndTakesAContainerOutOfUseAtOnce(t *testing.T) {
	b := newBed(t, ContainerGrained, 1000)
	j, _ := b.placed("a.1")
	if b.End(j.Container(), b.now) {
		t.Error("a busy container was ended")
	}
	c := j.Container()
	b.done(j, "c1")
	if !b.End(c, b.now) || c.State() != Gone {
		t.Error("an idle container was not ended")
	}
	if _, p := b.placed("a.2"); p.Expect != "" {
		t.Errorf("a job got container %s, which is ending", p.Expect)
	}
}
