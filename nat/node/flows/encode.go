package flows

import (
	"net/netip"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"
)

// Messages and attributes of ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const (
	ctNew    netfilter.MessageType = 0 // IPCTNL_MSG_CT_NEW
	ctDelete netfilter.MessageType = 2 // IPCTNL_MSG_CT_DELETE

	ctaTupleOrig, ctaTupleReply, ctaStatus, ctaProtoInfo = 1, 2, 3, 4
	ctaNATSrc, ctaTimeout, ctaMark, ctaNATDst            = 6, 7, 8, 13
	ctaLabels                                            = 22

	ctaTupleIP, ctaTupleProto = 1, 2

	ctaIPv4Src, ctaIPv4Dst, ctaIPv6Src, ctaIPv6Dst = 1, 2, 3, 4

	ctaProtoNum, ctaProtoSrcPort, ctaProtoDstPort      = 1, 2, 3
	ctaProtoICMPID, ctaProtoICMPType, ctaProtoICMPCode = 4, 5, 6
	// icmp6 is how much further the attributes of ICMPv6 are.
	icmp6 = 3

	ctaProtoInfoTCP, ctaProtoInfoSCTP                               = 1, 3
	ctaTCPState, ctaTCPScaleOriginal, ctaTCPScaleReply              = 1, 2, 3
	ctaTCPFlagsOriginal, ctaTCPFlagsReply                           = 4, 5
	ctaSCTPState, ctaSCTPTagOriginal, ctaSCTPTagReply               = 1, 2, 3
	ctaNATv4Min, ctaNATv4Max, ctaNATProto, ctaNATv6Min, ctaNATv6Max = 1, 2, 3, 4, 5
	ctaProtoNATMin, ctaProtoNATMax                                  = 1, 2
)

const (
	// copiedFlags of a TCP connection are IP_CT_TCP_FLAG_WINDOW_SCALE, _SACK_PERM, _CLOSE_INIT and _BE_LIBERAL
	// (nf_conntrack_tcp.h). The others are about packets that the kernel remembers, and of which a copy knows nothing.
	copiedFlags = 0x0f

	// beLiberal has the kernel accept packets outside of the windows it knows. It sets it by itself for a connection that
	// it picks up in the middle (nf_conntrack_proto_tcp.c, tcp_new), for the reason that holds here too: a copy knows
	// nothing of the windows, and the first packet of one side alone is no good measure for the other's.
	beLiberal = 0x08
)

func (e Entry) encode(ae *netlink.AttributeEncoder) error {
	ae.Nested(ctaTupleOrig, e.Original.encoder(e.Protocol))
	// The kernel computes the reply's tuple by itself from the one without NAT and from what NAT shall do
	// (nf_nat_core.c, nf_nat_setup_info): given the translated one, it would find nothing to translate.
	ae.Nested(ctaTupleReply, e.plainReply().encoder(e.Protocol))
	ae.Uint32(ctaStatus, e.Status&(seenReply|assured)|confirmed)
	ae.Uint32(ctaTimeout, e.Timeout)
	if e.Mark != 0 {
		ae.Uint32(ctaMark, e.Mark)
	}
	if len(e.Labels) > 0 {
		ae.Bytes(ctaLabels, e.Labels)
	}
	e.encodeState(ae)
	if e.Original.Destination != e.Reply.Source {
		ae.Nested(ctaNATDst, natTo(e.Protocol, e.Reply.Source, e.Reply.SourcePort))
	}
	if e.Original.Source != e.Reply.Destination {
		ae.Nested(ctaNATSrc, natTo(e.Protocol, e.Reply.Destination, e.Reply.DestinationPort))
	}
	return nil
}

// plainReply is the tuple of the answers without NAT.
func (e Entry) plainReply() Tuple {
	return Tuple{
		Source: e.Original.Destination, Destination: e.Original.Source,
		SourcePort: e.Original.DestinationPort, DestinationPort: e.Original.SourcePort,
		ID: e.Reply.ID, Type: e.Reply.Type, Code: e.Reply.Code,
	}
}

func (e Entry) encodeState(ae *netlink.AttributeEncoder) {
	switch {
	case e.TCP != nil:
		ae.Nested(ctaProtoInfo, func(ae *netlink.AttributeEncoder) error {
			ae.Nested(ctaProtoInfoTCP, func(ae *netlink.AttributeEncoder) error {
				ae.Uint8(ctaTCPState, e.TCP.State)
				ae.Uint8(ctaTCPScaleOriginal, e.TCP.ScaleOriginal)
				ae.Uint8(ctaTCPScaleReply, e.TCP.ScaleReply)
				ae.Bytes(ctaTCPFlagsOriginal, []byte{e.TCP.FlagsOriginal&copiedFlags | beLiberal, copiedFlags})
				ae.Bytes(ctaTCPFlagsReply, []byte{e.TCP.FlagsReply&copiedFlags | beLiberal, copiedFlags})
				return nil
			})
			return nil
		})
	case e.SCTP != nil:
		ae.Nested(ctaProtoInfo, func(ae *netlink.AttributeEncoder) error {
			ae.Nested(ctaProtoInfoSCTP, func(ae *netlink.AttributeEncoder) error {
				ae.Uint8(ctaSCTPState, e.SCTP.State)
				ae.Uint32(ctaSCTPTagOriginal, e.SCTP.TagsOriginal)
				ae.Uint32(ctaSCTPTagReply, e.SCTP.TagsReply)
				return nil
			})
			return nil
		})
	}
}

func (t Tuple) encoder(protocol uint8) func(*netlink.AttributeEncoder) error {
	return func(ae *netlink.AttributeEncoder) error {
		ae.Nested(ctaTupleIP, func(ae *netlink.AttributeEncoder) error {
			source, destination := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
			if t.Source.Is6() {
				source, destination = ctaIPv6Src, ctaIPv6Dst
			}
			ae.Bytes(source, t.Source.AsSlice())
			ae.Bytes(destination, t.Destination.AsSlice())
			return nil
		})
		ae.Nested(ctaTupleProto, func(ae *netlink.AttributeEncoder) error {
			ae.Uint8(ctaProtoNum, protocol)
			switch {
			case isICMP(protocol):
				further := uint16(0)
				if protocol == unix.IPPROTO_ICMPV6 {
					further = icmp6
				}
				ae.Uint16(ctaProtoICMPID+further, t.ID)
				ae.Uint8(ctaProtoICMPType+further, t.Type)
				ae.Uint8(ctaProtoICMPCode+further, t.Code)
			case hasPorts(protocol):
				ae.Uint16(ctaProtoSrcPort, t.SourcePort)
				ae.Uint16(ctaProtoDstPort, t.DestinationPort)
			}
			return nil
		})
		return nil
	}
}

// natTo says that one end of a connection becomes exactly this.
func natTo(protocol uint8, to netip.Addr, port uint16) func(*netlink.AttributeEncoder) error {
	return func(ae *netlink.AttributeEncoder) error {
		least, most := uint16(ctaNATv4Min), uint16(ctaNATv4Max)
		if to.Is6() {
			least, most = ctaNATv6Min, ctaNATv6Max
		}
		ae.Bytes(least, to.AsSlice())
		ae.Bytes(most, to.AsSlice())
		if hasPorts(protocol) {
			ae.Nested(ctaNATProto, func(ae *netlink.AttributeEncoder) error {
				ae.Uint16(ctaProtoNATMin, port)
				ae.Uint16(ctaProtoNATMax, port)
				return nil
			})
		}
		return nil
	}
}
