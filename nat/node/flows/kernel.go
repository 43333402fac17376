package flows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"

	"floatip.io/floatip"
)

// Read returns the tracked connections of the namespace that go through one of the floating addresses of bindings. It
// fails without the rights for it, or where the kernel has no connection tracking.
func Read(ns *os.File, bindings []floatip.Binding) ([]Entry, error) {
	conn, err := conntrack.Dial(&netlink.Config{NetNS: int(ns.Fd())})
	if err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	defer conn.Close()
	// A dump walks the whole hash table of the node, whoever its entries belong to.
	if stats, err := conn.StatsGlobal(); err == nil && stats.Entries == 0 {
		return nil, nil
	}
	all, err := conn.Dump(nil)
	if err != nil {
		return nil, fmt.Errorf("list tracked connections: %w", err)
	}
	var entries []Entry
	for _, f := range all {
		if e := newEntry(f); f.Zone == 0 && e.Check(bindings) == nil {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

func newEntry(f conntrack.Flow) Entry {
	e := Entry{
		Protocol: f.TupleOrig.Proto.Protocol, Original: newTuple(f.TupleOrig), Reply: newTuple(f.TupleReply),
		Timeout: f.Timeout, Status: uint32(f.Status) & (seenReply | assured), Mark: f.Mark,
	}
	for _, b := range f.Labels {
		if b != 0 {
			e.Labels = f.Labels
		}
	}
	if t := f.ProtoInfo.TCP; t != nil {
		e.TCP = &TCP{
			State: t.State, ScaleOriginal: t.OriginalWindowScale, ScaleReply: t.ReplyWindowScale,
			FlagsOriginal: uint8(t.OriginalFlags>>8) & copiedFlags, FlagsReply: uint8(t.ReplyFlags>>8) & copiedFlags,
		}
	}
	if s := f.ProtoInfo.SCTP; s != nil {
		e.SCTP = &SCTP{State: s.State, TagsOriginal: s.VTagOriginal, TagsReply: s.VTagReply}
	}
	return e
}

func newTuple(t conntrack.Tuple) Tuple {
	out := Tuple{
		Source: t.IP.SourceAddress, Destination: t.IP.DestinationAddress,
		SourcePort: t.Proto.SourcePort, DestinationPort: t.Proto.DestinationPort,
	}
	if isICMP(t.Proto.Protocol) {
		out.ID, out.Type, out.Code = t.Proto.ICMPID, t.Proto.ICMPType, t.Proto.ICMPCode
	}
	return out
}

// Table writes the tracked connections of one namespace.
type Table struct{ conn *netfilter.Conn }

// Open returns the Table of the namespace ns.
func Open(ns *os.File) (*Table, error) {
	conn, err := netfilter.Dial(&netlink.Config{NetNS: int(ns.Fd())})
	if err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	return &Table{conn}, nil
}

// Close closes the socket. What was written stays.
func (t *Table) Close() error { return t.conn.Close() }

// Put makes the kernel track the connection as e says. An entry that is there already is replaced, or, if keep is true,
// stays as it is: the kernel has seen packets of it since, and knows it better.
func (t *Table) Put(e Entry, keep bool) error {
	err := t.create(e)
	if errors.Is(err, unix.EEXIST) {
		if keep {
			return nil
		}
		if err := t.Remove(e.Key()); err != nil {
			return err
		}
		err = t.create(e)
	}
	if err != nil {
		return fmt.Errorf("track %s: %w", e.Original, err)
	}
	return nil
}

func (t *Table) create(e Entry) error {
	return t.query(ctNew, netlink.Create|netlink.Excl, e.Original.Source.Is6(), e.encode)
}

// Remove makes the kernel forget a connection. One that it does not know is fine.
func (t *Table) Remove(k Key) error {
	err := t.query(ctDelete, 0, k.Tuple.Source.Is6(), func(ae *netlink.AttributeEncoder) error {
		ae.Nested(ctaTupleOrig, k.Tuple.encoder(k.Protocol))
		return nil
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("forget %s: %w", k.Tuple, err)
	}
	return nil
}

// Relax makes the kernel accept the connection's packets wherever the windows are: it has not seen all of them.
func (t *Table) Relax(e Entry) error {
	if e.TCP == nil {
		return nil
	}
	err := t.query(ctNew, 0, e.Original.Source.Is6(), func(ae *netlink.AttributeEncoder) error {
		ae.Nested(ctaTupleOrig, e.Original.encoder(e.Protocol))
		ae.Nested(ctaProtoInfo, func(ae *netlink.AttributeEncoder) error {
			ae.Nested(ctaProtoInfoTCP, func(ae *netlink.AttributeEncoder) error {
				ae.Bytes(ctaTCPFlagsOriginal, []byte{beLiberal, beLiberal})
				ae.Bytes(ctaTCPFlagsReply, []byte{beLiberal, beLiberal})
				return nil
			})
			return nil
		})
		return nil
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("relax %s: %w", e.Original, err)
	}
	return nil
}

func (t *Table) query(kind netfilter.MessageType, flags netlink.HeaderFlags, v6 bool,
	encode func(*netlink.AttributeEncoder) error) error {
	family := netfilter.ProtoIPv4
	if v6 {
		family = netfilter.ProtoIPv6
	}
	ae := netfilter.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	if err := encode(ae); err != nil {
		return err
	}
	message, err := netfilter.EncodeNetlink(netfilter.Header{
		SubsystemID: netfilter.NFSubsysCTNetlink, MessageType: kind, Family: family,
		Flags: netlink.Request | netlink.Acknowledge | flags,
	}, ae)
	if err != nil {
		return err
	}
	_, err = t.conn.Query(message)
	return err
}
