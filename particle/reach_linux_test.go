package particle

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sync/errgroup"
)

// TestAThousandEndpointsOnEachNodeReachEachOther has two tenants with the same
// prefixes on the same nodes, and tries pairs of endpoints that it draws from
// all nodes, half of them over IPv6.
func TestAThousandEndpointsOnEachNodeReachEachOther(t *testing.T) {
	const endpoints, pairs, atOnce = 1000, 500, 4
	for _, count := range []int{2, 4} {
		t.Run(fmt.Sprintf("%d nodes", count), func(t *testing.T) {
			nodes := newCluster(t, count)
			var tenants [2][]*Network
			for k := range tenants {
				for i, s := range jobSpecs(nodes, fmt.Sprint("job", k), endpoints, func(s *Spec) {
					// jobSpecs has numbered the nodes, from 1, in the third byte.
					node := s.NodePrefix.Addr().As4()
					s.NodePrefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, (node[2] - 1) << 6, 0}), 18)
					s.Tenant = fmt.Sprint("tenant", k)
				}) {
					tenants[k] = append(tenants[k], nodes[i].up(t, s))
				}
			}
			seed := rand.Uint64()
			random := rand.New(rand.NewPCG(seed, 0))
			across := 0
			var group errgroup.Group
			group.SetLimit(atOnce)
			for i := range pairs {
				nws := tenants[i%len(tenants)]
				a, b := random.IntN(count), random.IntN(count)
				if a != b {
					across++
				}
				from, to := endpoint(t, nws[a], random.IntN(endpoints)), endpoint(t, nws[b], random.IntN(endpoints))
				source, target := from.Address, to.Address
				if random.IntN(2) == 0 {
					source, target = from.Address6, to.Address6
				}
				group.Go(func() error {
					if err := exchange(from, to, source, target, 100); err != nil {
						return fmt.Errorf("pair %d, node %d to node %d: %w", i, a, b, err)
					}
					return nil
				})
			}
			if err := group.Wait(); err != nil {
				t.Errorf("with seed %d: %v", seed, err)
			}
			if across < pairs/4 {
				t.Errorf("only %d pairs are on two nodes", across)
			}
		})
	}
}
