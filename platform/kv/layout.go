package kv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// bbolt trusts the pages of its file: on a damaged one it reads outside of the file, walks in circles or takes
// all memory, which no caller can catch. So their structure is checked first: a tree of pages, each used once,
// whose elements lie within it. The sizes are those of bbolt's format, version 2, in bytes.
const (
	pageHeader   = 16 // id 8, kind 2, count 2, overflow 4
	element      = 16 // branch: position 4, key size 4, page 8; leaf: kind 4, position 4, key size 4, value size 4
	bucketHeader = 16 // root page 8, sequence 8

	branchPage    = 0x01
	leafPage      = 0x02
	freelistPage  = 0x10
	bucketElement = 0x01

	metaRoot     = pageHeader + 16 // in a meta page: after magic, version, page size and flags
	metaFreelist = metaRoot + bucketHeader

	firstPage = 2 // after two meta pages
	manyFree  = 0xffff
)

var native = binary.NativeEndian

// layout is a store's file, and which of its pages have been found in use.
type layout struct {
	data     []byte
	pageSize uint64
	used     []bool // by page; its length is the first page that was never used
}

// checkLayout checks the pages that the transaction sees in the file at path.
func checkLayout(tx *bbolt.Tx, path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("%w: the file has %d bytes of %d", ErrCorrupt, info.Size(), tx.Size())
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(tx.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Munmap(data)) }()
	l := &layout{data: data, pageSize: uint64(tx.DB().Info().PageSize)}
	l.used = make([]bool, uint64(len(data))/l.pageSize)
	if err := l.check(uint64(tx.ID()) % firstPage); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}

// check walks everything from the meta page.
func (l *layout) check(meta uint64) error {
	head := l.data[meta*l.pageSize:]
	err := l.walk(native.Uint64(head[metaRoot:]), func(kind uint32, value []byte) error {
		if kind != bucketElement || len(value) < bucketHeader {
			return errors.New("a bucket is none")
		}
		if root := native.Uint64(value); root != 0 {
			return l.walk(root, isValue)
		}
		return leaf(value[bucketHeader:], isValue) // a small bucket lies in the value itself
	})
	if err != nil {
		return err
	}
	return l.free(native.Uint64(head[metaFreelist:]))
}

func isValue(kind uint32, _ []byte) error {
	if kind != 0 {
		return errors.New("a bucket lies within a bucket")
	}
	return nil
}

// claim is the page with this number and those it runs over to. Each page can be claimed once.
func (l *layout) claim(id uint64) ([]byte, error) {
	high := uint64(len(l.used))
	if id < firstPage || id >= high {
		return nil, fmt.Errorf("page %d is outside of the store", id)
	}
	page := l.data[id*l.pageSize:]
	if number := native.Uint64(page); number != id {
		return nil, fmt.Errorf("page %d says that it is page %d", id, number)
	}
	end := id + 1 + uint64(native.Uint32(page[12:]))
	if end > high {
		return nil, fmt.Errorf("page %d runs over the end", id)
	}
	for i := id; i < end; i++ {
		if l.used[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		l.used[i] = true
	}
	return page[:(end-id)*l.pageSize], nil
}

// walk calls each for all elements of the tree below a page.
func (l *layout) walk(id uint64, each func(kind uint32, value []byte) error) error {
	page, err := l.claim(id)
	if err != nil {
		return err
	}
	if native.Uint16(page[8:]) == leafPage {
		if err := leaf(page, each); err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		return nil
	}
	count := uint64(native.Uint16(page[10:]))
	if native.Uint16(page[8:]) != branchPage || count == 0 || pageHeader+count*element > uint64(len(page)) {
		return fmt.Errorf("page %d is no page of a tree", id)
	}
	for i := range count {
		at := pageHeader + i*element
		e := page[at:]
		if at+uint64(native.Uint32(e))+uint64(native.Uint32(e[4:])) > uint64(len(page)) {
			return fmt.Errorf("page %d: key %d lies outside", id, i)
		}
		if err := l.walk(native.Uint64(e[8:]), each); err != nil {
			return err
		}
	}
	return nil
}

// leaf calls each for all elements of a leaf page.
func leaf(page []byte, each func(kind uint32, value []byte) error) error {
	if len(page) < pageHeader || native.Uint16(page[8:]) != leafPage {
		return errors.New("it is no leaf")
	}
	count := uint64(native.Uint16(page[10:]))
	if pageHeader+count*element > uint64(len(page)) {
		return errors.New("it has more elements than room")
	}
	for i := range count {
		at := pageHeader + i*element
		e := page[at:]
		value := at + uint64(native.Uint32(e[4:])) + uint64(native.Uint32(e[8:]))
		end := value + uint64(native.Uint32(e[12:]))
		if end > uint64(len(page)) {
			return fmt.Errorf("element %d lies outside", i)
		}
		if err := each(native.Uint32(e), page[value:end]); err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
	}
	return nil
}

// free checks that the pages without use are exactly those that the list of free pages names.
func (l *layout) free(id uint64) error {
	page, err := l.claim(id)
	if err != nil {
		return fmt.Errorf("list of free pages: %w", err)
	}
	at, count := uint64(pageHeader), uint64(native.Uint16(page[10:]))
	if count == manyFree { // then the number stands in front of the list
		count = native.Uint64(page[at:])
		at += 8
	}
	if native.Uint16(page[8:]) != freelistPage || count > (uint64(len(page))-at)/8 {
		return errors.New("the list of free pages is none")
	}
	for i := range count {
		free := native.Uint64(page[at+i*8:])
		if free < firstPage || free >= uint64(len(l.used)) || l.used[free] {
			return fmt.Errorf("page %d is listed as free", free)
		}
		l.used[free] = true
	}
	for i, used := range l.used[firstPage:] {
		if !used {
			return fmt.Errorf("page %d is neither used nor free", firstPage+i)
		}
	}
	return nil
}
