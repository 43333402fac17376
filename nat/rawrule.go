package nat

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The library writes every expression that our rules need, but cannot read all of them back (the directions of ct, rt,
// byteorder). Rules are therefore compared as what both sides have in common: netlink attributes, brought into one
// canonical text.

// rawRules returns the rules of our chains in table, by chain, in the kernel's order.
func (k *Kernel) rawRules(table *nftables.Table) (map[string][]Rule, error) {
	texts, err := RuleTexts(k.rules, table)
	rules := map[string][]Rule{}
	for chain, list := range texts {
		if strings.HasPrefix(chain, prefix) {
			for _, text := range list {
				rules[chain] = append(rules[chain], Rule{canonical: text})
			}
		}
	}
	return rules, err
}

// RuleTexts returns the canonical texts of the rules of a table, by chain, in the kernel's order; none of a table that
// does not exist. Two rules with one text do the same.
func RuleTexts(conn *netlink.Conn, table *nftables.Table) (map[string][]string, error) {
	return new(Texts).Read(conn, table)
}

// Texts reads the same rules again and again. To make sense of one takes longer than to read it, so what was there the last time
// is remembered. The zero Texts remembers nothing. Not for concurrent use.
type Texts struct {
	known map[string]string // canonical texts, by the expressions as the kernel wrote them
}

// Read returns what RuleTexts does.
func (t *Texts) Read(conn *netlink.Conn, table *nftables.Table) (map[string][]string, error) {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(table.Name + "\x00")},
	})
	if err != nil {
		return nil, err
	}
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE,
			Flags: netlink.Request | netlink.Dump,
		},
		Data: append([]byte{byte(table.Family), unix.NFNETLINK_V0, 0, 0}, attrs...), // struct nfgenmsg
	})
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	texts, known := map[string][]string{}, make(map[string]string, len(t.known))
	for _, m := range messages {
		chain, raw, err := splitRule(m.Data)
		text, again := t.known[string(raw)]
		if err == nil && !again {
			text, err = Canonical(raw)
		}
		if err != nil {
			return nil, err
		}
		known[string(raw)] = text
		texts[chain] = append(texts[chain], text)
	}
	t.known = known
	return texts, nil
}

// splitRule returns the expressions of a rule in the kernel's form, and the chain that it stands in.
func splitRule(message []byte) (chain string, raw []byte, err error) {
	if len(message) < 4 {
		return "", nil, fmt.Errorf("a rule of %d bytes", len(message))
	}
	ad, err := netlink.NewAttributeDecoder(message[4:])
	if err != nil {
		return "", nil, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_RULE_CHAIN:
			chain = ad.String()
		case unix.NFTA_RULE_EXPRESSIONS:
			raw = ad.Bytes()
		}
	}
	return chain, raw, ad.Err()
}

// RuleText returns the canonical text of expressions, the one that RuleTexts reads once the kernel has them. They come
// from our own builders, so an error is a programming mistake.
func RuleText(id nftables.TableFamily, exprs []expr.Any) string {
	var list []netlink.Attribute
	for _, e := range exprs {
		raw, err := expr.Marshal(byte(id), e)
		if err != nil {
			panic("nat: expression: " + err.Error())
		}
		list = append(list, netlink.Attribute{Type: unix.NFTA_LIST_ELEM, Data: raw})
	}
	raw, err := netlink.MarshalAttributes(list)
	if err == nil {
		var text string
		if text, err = Canonical(raw); err == nil {
			return text
		}
	}
	panic("nat: expressions: " + err.Error())
}

// Canonical returns the canonical text of a list of expressions in the kernel's form (NFTA_RULE_EXPRESSIONS).
func Canonical(raw []byte) (string, error) {
	ad, err := netlink.NewAttributeDecoder(raw)
	if err != nil {
		return "", err
	}
	var out []string
	for ad.Next() {
		text, err := canonicalExpr(ad.Bytes())
		if err != nil {
			return "", err
		}
		out = append(out, text)
	}
	return strings.Join(out, " "), ad.Err()
}

// canonicalExpr turns one expression into "name{attribute:value …}".
func canonicalExpr(raw []byte) (string, error) {
	ad, err := netlink.NewAttributeDecoder(raw)
	if err != nil {
		return "", err
	}
	var name, data string
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			name = ad.String()
		case unix.NFTA_EXPR_DATA:
			if data, err = canonicalAttributes(name, ad.Bytes()); err != nil {
				return "", fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return name + "{" + data + "}", ad.Err()
}

// attribute names one attribute of an expression.
type attribute struct {
	expr string
	kind uint16
}

// nested are the attributes that hold a value (NFTA_DATA_VALUE) or a verdict.
var nested = map[attribute]bool{
	{"cmp", unix.NFTA_CMP_DATA}:             true,
	{"immediate", unix.NFTA_IMMEDIATE_DATA}: true,
	{"bitwise", unix.NFTA_BITWISE_MASK}:     true,
	{"bitwise", unix.NFTA_BITWISE_XOR}:      true,
}

// ignored are the attributes that say nothing about what a rule does: the id of a set lives only in the transaction
// that made it, and the kernel adds NF_NAT_RANGE_MAP_IPS to the flags of nat whenever there is an address.
var ignored = map[attribute]bool{
	{"lookup", unix.NFTA_LOOKUP_SET_ID}: true,
}

func canonicalAttributes(expr string, raw []byte) (string, error) {
	ad, err := netlink.NewAttributeDecoder(raw)
	if err != nil {
		return "", err
	}
	values := map[uint16]string{}
	for ad.Next() {
		a := attribute{expr, ad.Type()}
		if ignored[a] {
			continue
		}
		value, err := canonicalValue(a, ad.Bytes())
		if err != nil {
			return "", err
		}
		if value != "" {
			values[a.kind] = value
		}
	}
	return sorted(values), ad.Err()
}

// canonicalValue is empty for zeros: an attribute that is absent and one that is zero mean the same to the kernel, and
// only some of them come back.
func canonicalValue(a attribute, raw []byte) (string, error) {
	switch {
	case nested[a]:
		return canonicalData(raw)
	case a == attribute{"nat", unix.NFTA_NAT_FLAGS} && len(raw) == 4:
		raw = binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(raw)&^unix.NF_NAT_RANGE_MAP_IPS)
	}
	// Names end with a zero or not. The direction of ct is one byte in the kernel (nft_ct_policy) and four in the
	// library.
	trimmed := strings.TrimRight(string(raw), "\x00")
	if a == (attribute{"ct", unix.NFTA_CT_DIRECTION}) || trimmed == "" || printable(trimmed) {
		return fmt.Sprintf("%x", trimmed), nil
	}
	return fmt.Sprintf("%x", raw), nil
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// canonicalData keeps zeros: they are data.
func canonicalData(raw []byte) (string, error) {
	ad, err := netlink.NewAttributeDecoder(raw)
	if err != nil {
		return "", err
	}
	values := map[uint16]string{}
	for ad.Next() {
		kind, value := ad.Type(), fmt.Sprintf("%x", ad.Bytes())
		if kind == unix.NFTA_DATA_VERDICT {
			if value, err = canonicalAttributes("verdict", ad.Bytes()); err != nil {
				return "", err
			}
		}
		values[kind] = value
	}
	return "{" + sorted(values) + "}", ad.Err()
}

func sorted(values map[uint16]string) string {
	var out []string
	for kind := range uint16(64) {
		if v, ok := values[kind]; ok {
			out = append(out, fmt.Sprintf("%d:%s", kind, v))
		}
	}
	return strings.Join(out, " ")
}
