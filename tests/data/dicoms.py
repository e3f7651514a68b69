"""DICOM files for the tests."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid


def write_dicom(path, pixels, *, bits=None, syntax=ExplicitVRLittleEndian, **tags):
    """Writes grey pixels (H, W), or any with their tags given; a tag of None is left out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = encapsulate([pixels.tobytes()]) if syntax.is_encapsulated else pixels.tobytes()
    dataset["PixelData"].VR = "OB" if syntax.is_encapsulated else "OW"
    for name, value in tags.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def lookup_table(entries, *, first=0, bits=16, packed=None):
    """An item of a LUT sequence; `packed`: the type of its entries where they are written as bytes."""
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    if packed:
        item.add_new("LUTData", "OW", np.asarray(entries, packed).tobytes())
    else:
        item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return item
