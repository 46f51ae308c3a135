package particle

import (
	"context"
	"testing"
	"time"
)

func TestEndpointsOfEveryDesignReachEachOther(t *testing.T) {
	for _, design := range Designs() {
		t.Run(string(design), func(t *testing.T) {
			nodes := newCluster(t, 2)
			var nws []*Network
			for i, s := range jobSpecs(nodes, "job", 3, func(s *Spec) { s.Design = design }) {
				nws = append(nws, nodes[i].up(t, s))
				t.Log(nws[i].Steps())
			}
			for _, pair := range [][4]int{{0, 0, 1, 0}, {1, 2, 0, 1}, {0, 0, 0, 2}} {
				from, to := endpoint(t, nws[pair[0]], pair[1]), endpoint(t, nws[pair[2]], pair[3])
				if err := exchange(from, to, from.Address, to.Address, 100_000); err != nil {
					t.Errorf("%v to %v: %v", from.Address, to.Address, err)
				}
				if err := exchange(from, to, from.Address6, to.Address6, 100_000); err != nil {
					t.Errorf("%v to %v: %v", from.Address6, to.Address6, err)
				}
			}
			for i, nw := range nws {
				if err := nw.Apply(context.Background()); err != nil {
					t.Errorf("apply again: %v", err)
				}
				for range 2 {
					if err := nw.Close(context.Background()); err != nil {
						t.Error(err)
					}
				}
				if list, err := nodes[i].List(context.Background()); err != nil || len(list) > 0 {
					t.Errorf("networks after Close: %v, %v", list, err)
				}
			}
		})
	}
}

func TestNetworksAreUsableAsSoonAsTheyAreMade(t *testing.T) {
	for _, design := range Designs() {
		t.Run(string(design), func(t *testing.T) {
			nodes := newCluster(t, 2)
			var nws []*Network
			for i, s := range jobSpecs(nodes, "job", 8, func(s *Spec) { s.Design = design }) {
				nws = append(nws, nodes[i].up(t, s))
			}
			started := time.Now()
			for i := range 8 {
				from, to := endpoint(t, nws[0], i), endpoint(t, nws[1], i)
				if err := exchange(from, to, from.Address, to.Address, 1); err != nil {
					t.Error(err)
				}
			}
			// A first packet that is lost is sent again after a second.
			if took := time.Since(started); took > 900*time.Millisecond {
				t.Errorf("8 exchanges took %v", took)
			}
		})
	}
}
