//go:build linux

package bpf

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// The programs keep the context in R6 and the endpoint's entry in R7. Addresses
// stay in network byte order.
const (
	ctx   = asm.R6
	entry = asm.R7
)

// An entry of the map: what endpoints have.
const (
	entrySize   = 24
	entryIP4    = 0 // 4 bytes
	entryHas    = 4 // bits of has4 and has6
	entryIP6    = 8 // 16 bytes
	has4, has6  = 1, 2
	verdictDeny = 0
	verdictPass = 1
)

// Offsets in struct bpf_sock_addr of linux/bpf.h.
const (
	addrIP4      = 4
	addrIP6      = 8
	addrProtocol = 36
	addrSrcIP4   = 40
	addrSrcIP6   = 44
	addrSocket   = 64
)

// Offsets in struct bpf_sock and struct __sk_buff of linux/bpf.h.
const (
	sockType     = 8
	sockProtocol = 12
	skbProtocol  = 16
	skbData      = 76
	skbDataEnd   = 80
)

// Numbers of sockets, protocols and Ethernet.
const (
	afINET, afINET6        = 2, 10
	sockStream, sockDgram  = 1, 2
	protocolTCP            = 6
	protocolUDP            = 17
	etherTypeIP4           = 0x0800
	etherTypeIP6           = 0x86dd
	ip4Header, ip6Header   = 20, 40
	ip4Source, ip4Target   = 12, 16
	ip6Source, ip6Target   = 8, 24
	mappedWord, loopbackV6 = 0xffff, 1 // in host byte order
)

// program is one of the set.
type program struct {
	name   string
	kind   ebpf.ProgramType
	attach ebpf.AttachType
	code   func(b *builder)
}

func programs() []program {
	addr, skb := ebpf.CGroupSockAddr, ebpf.CGroupSKB
	return []program{
		{"bind4", addr, ebpf.AttachCGroupInet4Bind, bind4},
		{"bind6", addr, ebpf.AttachCGroupInet6Bind, bind6},
		{"connect4", addr, ebpf.AttachCGroupInet4Connect, connect4},
		{"connect6", addr, ebpf.AttachCGroupInet6Connect, connect6},
		{"sendmsg4", addr, ebpf.AttachCGroupUDP4Sendmsg, sendmsg4},
		{"sendmsg6", addr, ebpf.AttachCGroupUDP6Sendmsg, sendmsg6},
		{"create", ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate, create},
		{"ingress", skb, ebpf.AttachCGroupInetIngress, func(b *builder) { packets(b, ip4Target, ip6Target) }},
		{"egress", skb, ebpf.AttachCGroupInetEgress, func(b *builder) { packets(b, ip4Source, ip6Source) }},
	}
}

// builder writes one program.
type builder struct {
	asm.Instructions
	level int32 // at which group above what runs the endpoint's is
	mapFD int
	dual  dual
	label string // of the next instruction
}

func (b *builder) add(ins ...asm.Instruction) {
	for _, i := range ins {
		if b.label != "" {
			i = i.WithSymbol(b.label)
			b.label = ""
		}
		b.Instructions = append(b.Instructions, i)
	}
}

// at gives the next instruction a name to jump to.
func (b *builder) at(label string) { b.label = label }

// end adds the two ends.
func (b *builder) end() {
	b.at("pass")
	b.add(asm.Mov.Imm(asm.R0, verdictPass), asm.Return())
	b.at("deny")
	b.add(asm.Mov.Imm(asm.R0, verdictDeny), asm.Return())
}

// find loads the entry of what runs, or denies.
func (b *builder) find() {
	b.lookup(asm.Mov.Imm(asm.R1, b.level), asm.FnGetCurrentAncestorCgroupId.Call())
}

// findOfPacket loads the entry of the group that the packet's socket was made
// in, or denies.
func (b *builder) findOfPacket() {
	b.lookup(asm.Mov.Imm(asm.R2, b.level), asm.FnSkbAncestorCgroupId.Call())
}

// lookup begins a program: group is how to find the endpoint's group.
func (b *builder) lookup(group ...asm.Instruction) {
	b.add(asm.Mov.Reg(ctx, asm.R1))
	b.add(group...)
	b.add(
		asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		asm.LoadMapPtr(asm.R1, b.mapFD),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -8),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "deny"),
		asm.Mov.Reg(entry, asm.R0),
	)
}

// need denies unless the endpoint has an address of that family. It uses R5.
func (b *builder) need(family int32) {
	b.add(
		asm.LoadMem(asm.R5, entry, entryHas, asm.Word),
		asm.And.Imm(asm.R5, family),
		asm.JEq.Imm(asm.R5, 0, "deny"),
	)
}

// ifHere4 goes to label if the IPv4 address in r is the unspecified one or
// loopback. It uses R5.
func (b *builder) ifHere4(r asm.Register, label string) {
	b.add(
		asm.JEq.Imm(r, 0, label),
		asm.Mov.Reg(asm.R5, r),
		asm.HostTo(asm.BE, asm.R5, asm.Word),
		asm.RSh.Imm(asm.R5, 24),
		asm.JEq.Imm(asm.R5, 127, label),
	)
}

// bind4: the unspecified address and loopback become the endpoint's own.
func bind4(b *builder) {
	b.find()
	b.need(has4)
	b.add(
		asm.LoadMem(asm.R1, ctx, addrIP4, asm.Word),
		asm.LoadMem(asm.R2, entry, entryIP4, asm.Word),
	)
	b.ifHere4(asm.R1, "own")
	b.add(
		asm.JEq.Reg(asm.R1, asm.R2, "pass"),
		asm.Ja.Label("deny"),
	)
	b.at("own")
	b.add(asm.StoreMem(ctx, addrIP4, asm.R2, asm.Word))
	b.end()
}

// words6 are the registers of an IPv6 address that is looked at.
func words6() [4]asm.Register { return [...]asm.Register{asm.R1, asm.R2, asm.R3, asm.R4} }

// load6 loads the IPv6 address at an offset in the context into words6.
func (b *builder) load6(offset int16) {
	for i, r := range words6() {
		b.add(asm.LoadMem(r, ctx, offset+int16(4*i), asm.Word))
	}
}

// networkImm loads a constant, given in host byte order, in network byte order.
func (b *builder) networkImm(r asm.Register, v int32) {
	b.add(asm.Mov.Imm(r, v), asm.HostTo(asm.BE, r, asm.Word))
}

// sort6 looks at the IPv6 address in R1 to R4 and goes to "here6" if it is the
// unspecified one or loopback, to "mapped" if it stands for an IPv4 address,
// which is then in R4, and else to what follows. It uses R5.
func (b *builder) sort6() {
	b.add(
		asm.JNE.Imm(asm.R1, 0, "plain"),
		asm.JNE.Imm(asm.R2, 0, "plain"),
	)
	b.networkImm(asm.R5, mappedWord)
	b.add(
		asm.JEq.Reg(asm.R3, asm.R5, "mapped"),
		asm.JNE.Imm(asm.R3, 0, "plain"),
		asm.JEq.Imm(asm.R4, 0, "here6"),
	)
	b.networkImm(asm.R5, loopbackV6)
	b.add(asm.JEq.Reg(asm.R4, asm.R5, "here6"))
	b.at("plain")
}

// own6 stores the endpoint's IPv6 address in the context at an offset.
func (b *builder) own6(offset int16) {
	for i := range int16(4) {
		b.add(
			asm.LoadMem(asm.R1, entry, entryIP6+4*i, asm.Word),
			asm.StoreMem(ctx, offset+4*i, asm.R1, asm.Word),
		)
	}
}

// own4As6 stores the endpoint's IPv4 address, mapped, in the context at an
// offset.
func (b *builder) own4As6(offset int16) {
	b.add(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(ctx, offset, asm.R1, asm.Word),
		asm.StoreMem(ctx, offset+4, asm.R1, asm.Word),
	)
	b.networkImm(asm.R1, mappedWord)
	b.add(
		asm.StoreMem(ctx, offset+8, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, entry, entryIP4, asm.Word),
		asm.StoreMem(ctx, offset+12, asm.R1, asm.Word),
	)
}

// bind6 is bind4 for IPv6 and for IPv4 addresses in it. The unspecified address
// becomes the endpoint's IPv6 address, or its IPv4 address, mapped, if it has
// no other; a socket that is for IPv6 only then fails with EINVAL. With both,
// TCP serves both: see dual.
func bind6(b *builder) {
	b.find()
	b.load6(addrIP6)
	b.sort6()
	b.need(has6)
	for i, r := range words6() {
		b.add(
			asm.LoadMem(asm.R5, entry, entryIP6+int16(4*i), asm.Word),
			asm.JNE.Reg(r, asm.R5, "deny"),
		)
	}
	b.add(asm.Ja.Label("pass"))

	b.at("mapped")
	b.need(has4)
	b.ifHere4(asm.R4, "own4")
	b.add(
		asm.LoadMem(asm.R2, entry, entryIP4, asm.Word),
		asm.JEq.Reg(asm.R4, asm.R2, "pass"),
		asm.Ja.Label("deny"),
	)
	b.at("here6")
	if b.dual.ok() {
		b.mark("choose")
		b.at("choose")
	}
	b.chooseOwn()
	b.add(asm.Ja.Label("pass"))
	b.at("own4")
	b.own4As6(addrIP6)
	b.end()
}

// chooseOwn is for loopback and the unspecified address: it stores the endpoint's IPv6 address, or goes
// to "own4" if it has none but one of IPv4.
func (b *builder) chooseOwn() {
	b.add(
		asm.LoadMem(asm.R3, entry, entryHas, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R3),
		asm.And.Imm(asm.R4, has6),
		asm.JNE.Imm(asm.R4, 0, "own6"),
		asm.And.Imm(asm.R3, has4),
		asm.JNE.Imm(asm.R3, 0, "own4"),
		asm.Ja.Label("deny"),
	)
	b.at("own6")
	b.own6(addrIP6)
}

// redirect4 begins what is about the other end: loopback becomes the endpoint
// itself. It leaves the endpoint's address in R2.
func (b *builder) redirect4() {
	b.find()
	b.need(has4)
	b.add(
		asm.LoadMem(asm.R1, ctx, addrIP4, asm.Word),
		asm.LoadMem(asm.R2, entry, entryIP4, asm.Word),
	)
	b.ifHere4(asm.R1, "own")
	b.add(asm.Ja.Label("source"))
	b.at("own")
	b.add(asm.StoreMem(ctx, addrIP4, asm.R2, asm.Word))
	b.at("source")
}

// connect4: loopback is the endpoint itself, and what is not bound yet is bound
// to its address. That this fails for what is bound does not matter: bind4 saw to it.
func connect4(b *builder) {
	b.redirect4()
	const sockaddr, size = -32, 16
	b.add(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, sockaddr, asm.R1, asm.DWord),
		asm.StoreMem(asm.RFP, sockaddr+8, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R1, afINET),
		asm.StoreMem(asm.RFP, sockaddr, asm.R1, asm.Half),
		asm.StoreMem(asm.RFP, sockaddr+4, asm.R2, asm.Word),
	)
	b.bind(sockaddr, size)
	b.end()
}

// bind calls bpf_bind with a sockaddr on the stack.
func (b *builder) bind(sockaddr int16, size int32) {
	b.add(
		asm.Mov.Reg(asm.R1, ctx),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, int32(sockaddr)),
		asm.Mov.Imm(asm.R3, size),
		asm.FnBind.Call(),
	)
}

// connect6 is connect4 for IPv6 and for IPv4 addresses in it.
func connect6(b *builder) {
	const sockaddr, size = -48, 28
	b.find()
	b.add(asm.Mov.Imm(asm.R1, 0))
	for i := range int16(4) {
		b.add(asm.StoreMem(asm.RFP, sockaddr+8*i, asm.R1, asm.DWord))
	}
	b.add(
		asm.Mov.Imm(asm.R1, afINET6),
		asm.StoreMem(asm.RFP, sockaddr, asm.R1, asm.Half),
	)
	b.load6(addrIP6)
	b.sort6()
	b.need(has6)
	b.add(asm.Ja.Label("source6"))

	b.at("mapped")
	b.need(has4)
	b.ifHere4(asm.R4, "own4")
	b.add(asm.Ja.Label("source4"))
	b.at("here6")
	b.chooseOwn()
	b.at("source6")
	for i := range int16(4) {
		b.add(
			asm.LoadMem(asm.R1, entry, entryIP6+4*i, asm.Word),
			asm.StoreMem(asm.RFP, sockaddr+8+4*i, asm.R1, asm.Word),
		)
	}
	b.add(asm.Ja.Label("bind"))
	b.at("own4")
	b.own4As6(addrIP6)
	b.at("source4")
	b.networkImm(asm.R1, mappedWord)
	b.add(
		asm.StoreMem(asm.RFP, sockaddr+16, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, entry, entryIP4, asm.Word),
		asm.StoreMem(asm.RFP, sockaddr+20, asm.R1, asm.Word),
	)
	b.at("bind")
	b.bind(sockaddr, size)
	b.end()
}

// sendmsg4 is connect4 for datagrams of sockets that are not connected.
func sendmsg4(b *builder) {
	b.redirect4()
	b.add(asm.StoreMem(ctx, addrSrcIP4, asm.R2, asm.Word))
	b.end()
}

// sendmsg6 is sendmsg4 for IPv6. What goes to mapped addresses comes by
// sendmsg4. The kernel does not let a datagram's family be changed, so that
// loopback is refused where the endpoint has no IPv6 address.
func sendmsg6(b *builder) {
	b.find()
	b.need(has6)
	b.load6(addrIP6)
	b.sort6()
	b.add(asm.Ja.Label("source"))
	b.at("mapped")
	b.add(asm.Ja.Label("deny"))
	b.at("here6")
	b.own6(addrIP6)
	b.at("source")
	b.own6(addrSrcIP6)
	b.end()
}

// create lets programs have TCP and UDP sockets. Raw sockets and those of
// ping(8) are bound past the other programs; MPTCP makes sockets of its own.
func create(b *builder) {
	b.find()
	b.add(
		asm.LoadMem(asm.R1, ctx, sockType, asm.Word),
		asm.LoadMem(asm.R2, ctx, sockProtocol, asm.Word),
		asm.JEq.Imm(asm.R1, sockDgram, "datagram"),
		asm.JNE.Imm(asm.R1, sockStream, "deny"),
		asm.JEq.Imm(asm.R2, protocolTCP, "pass"),
		asm.Ja.Label("deny"),
	)
	b.at("datagram")
	b.add(asm.JNE.Imm(asm.R2, protocolUDP, "deny"))
	b.end()
}

// packets compares the address at an offset of each packet with the endpoint's:
// the target of what comes in, the source of what goes out. That is for what
// no other program sees: listen(2) without bind(2), unconnected sockets that
// were bound by the kernel, sources chosen by control message.
func packets(b *builder, offset4, offset6 int16) {
	b.findOfPacket()
	b.add(
		asm.LoadMem(asm.R8, ctx, skbData, asm.Word),
		asm.LoadMem(asm.R9, ctx, skbDataEnd, asm.Word),
		asm.LoadMem(asm.R1, ctx, skbProtocol, asm.Word),
	)
	b.add(asm.HostTo(asm.BE, asm.R1, asm.Half))
	b.add(
		asm.JEq.Imm(asm.R1, etherTypeIP6, "ip6"),
		asm.JNE.Imm(asm.R1, etherTypeIP4, "deny"),
	)
	b.need(has4)
	b.add(
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.Add.Imm(asm.R1, ip4Header),
		asm.JGT.Reg(asm.R1, asm.R9, "deny"),
		asm.LoadMem(asm.R1, asm.R8, offset4, asm.Word),
		asm.LoadMem(asm.R2, entry, entryIP4, asm.Word),
		asm.JEq.Reg(asm.R1, asm.R2, "pass"),
		asm.Ja.Label("deny"),
	)
	b.at("ip6")
	b.need(has6)
	b.add(
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.Add.Imm(asm.R1, ip6Header),
		asm.JGT.Reg(asm.R1, asm.R9, "deny"),
	)
	for i := range int16(4) {
		b.add(
			asm.LoadMem(asm.R1, asm.R8, offset6+4*i, asm.Word),
			asm.LoadMem(asm.R2, entry, entryIP6+4*i, asm.Word),
			asm.JNE.Reg(asm.R1, asm.R2, "deny"),
		)
	}
	b.end()
}
