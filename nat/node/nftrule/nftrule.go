// Package nftrule writes rules of nftables with expressions that github.com/google/nftables does not know, such as fwd or
// ct with a length. Tables, sets and chains are the library's.
package nftrule

import (
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat"
)

// Part is what one phrase of a rule's text becomes: expr.Any of the library, or Encoded.
type Part []any

// Encoded is an expression as the kernel reads it (NFTA_LIST_ELEM).
type Encoded []byte

// Rule is one rule and the text that nft would read.
type Rule struct {
	Text  string
	exprs []Encoded
}

// New makes a rule for a table of the family. An expression that cannot be encoded is a programming mistake, and panics.
func New(family nftables.TableFamily, text string, parts ...Part) Rule {
	r := Rule{Text: text}
	for _, p := range parts {
		for _, e := range p {
			r.exprs = append(r.exprs, encode(family, e))
		}
	}
	return r
}

func encode(family nftables.TableFamily, e any) Encoded {
	if raw, already := e.(Encoded); already {
		return raw
	}
	raw, err := expr.Marshal(byte(family), e.(expr.Any))
	if err != nil {
		panic("nftrule: expression: " + err.Error())
	}
	return raw
}

// Expression encodes an expression by its name and attributes.
func Expression(name string, list ...netlink.Attribute) Encoded {
	return attributes(
		netlink.Attribute{Type: unix.NFTA_EXPR_NAME, Data: []byte(name + "\x00")},
		netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_EXPR_DATA, Data: attributes(list...)})
}

func attributes(list ...netlink.Attribute) []byte {
	raw, err := netlink.MarshalAttributes(list)
	if err != nil {
		panic("nftrule: attributes: " + err.Error())
	}
	return raw
}

// Register returns the n-th register of 4 bytes by the name that the kernel prefers: four of them make one of 16
// (nft_dump_register in net/netfilter/nf_tables_api.c).
func Register(n uint32) uint32 {
	if n%4 == 0 {
		return unix.NFT_REG_1 + n/4
	}
	return unix.NFT_REG32_00 + n
}

// list is the rule's expressions as one attribute.
func (r Rule) list() []byte {
	var list []netlink.Attribute
	for _, e := range r.exprs {
		list = append(list, netlink.Attribute{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: e})
	}
	return attributes(list...)
}

// Canonical is what the rule is compared by: the text that nat.RuleTexts reads once the kernel has it.
func (r Rule) Canonical() string {
	text, err := nat.Canonical(r.list())
	if err != nil {
		panic("nftrule: rule: " + err.Error())
	}
	return text
}

// Chain is the rules of one chain.
type Chain struct {
	Name  string
	Rules []Rule
}

// Dial opens a socket in the network namespace ns, that of the process where ns is nil.
func Dial(ns *os.File) (*netlink.Conn, error) {
	var c netlink.Config
	if ns != nil {
		c.NetNS = int(ns.Fd())
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &c)
	if err != nil {
		return nil, fmt.Errorf("nftables socket: %w", err)
	}
	return conn, nil
}

// Write gives the chains, which exist, these rules in place of what they have, in one transaction.
func Write(conn *netlink.Conn, table *nftables.Table, chains []Chain) error {
	messages := []netlink.Message{batchMessage(unix.NFNL_MSG_BATCH_BEGIN)}
	add := func(kind netlink.HeaderType, flags netlink.HeaderFlags, chain string, more ...netlink.Attribute) {
		messages = append(messages, netlink.Message{
			Header: netlink.Header{
				Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | kind,
				Flags: netlink.Request | netlink.Acknowledge | flags,
			},
			Data: append([]byte{byte(table.Family), unix.NFNETLINK_V0, 0, 0}, attributes(append([]netlink.Attribute{
				{Type: unix.NFTA_RULE_TABLE, Data: []byte(table.Name + "\x00")},
				{Type: unix.NFTA_RULE_CHAIN, Data: []byte(chain + "\x00")}}, more...)...)...),
		})
	}
	for _, c := range chains { // all of them first: a rule may lead to a chain whose old rules lead back
		add(unix.NFT_MSG_DELRULE, 0, c.Name)
	}
	for _, c := range chains {
		for _, r := range c.Rules {
			add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, c.Name,
				netlink.Attribute{Type: unix.NFTA_RULE_EXPRESSIONS | unix.NLA_F_NESTED, Data: r.list()})
		}
	}
	if _, err := conn.SendMessages(append(messages, batchMessage(unix.NFNL_MSG_BATCH_END))); err != nil {
		return fmt.Errorf("send rules: %w", err)
	}
	for range len(messages) - 1 { // each has its answer
		if _, err := conn.Receive(); err != nil {
			return fmt.Errorf("write rules: %w", err)
		}
	}
	return nil
}

// batchMessage begins or ends a transaction (struct nfgenmsg with the subsystem as its resource).
func batchMessage(kind netlink.HeaderType) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request},
		Data:   []byte{unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES},
	}
}
